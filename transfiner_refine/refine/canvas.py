"""RoIs of many instances as one tensor: cut out, resampled, pasted, compared and run-length encoded in batches.

An instance's RoI lies in the top left corner of a square canvas, so that RoIs of different sizes share one tensor
and no shape depends on data. These functions do what those of ``roi.py`` and ``instance.py`` do for one instance in
NumPy and OpenCV, which their tests compare them with. They launch a fixed number of operators and wait for nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from transfiner_refine.refine.instance import LEAST_THICKNESS, MOST_REDRAWN, OVERLAP


def axis_matrix(
    targets: int,
    sources: int,
    target_length: Tensor,
    source_length: Tensor,
    target_start: Tensor | float = 0.0,
    source_start: Tensor | float = 0.0,
) -> Tensor:
    """``roi.resample`` along one axis as a matrix [B, targets, sources]: area average or bilinear.

    An instance takes ``length`` places of its axis from ``start`` on, [B] float32 each; the other rows are zero.
    """
    device, first = target_length.device, _column(source_start)
    wanted, length = target_length[:, None, None], source_length[:, None, None]
    target = torch.arange(targets, device=device)[None, :, None] - _column(target_start)  # [B, targets, 1]
    source = torch.arange(sources, device=device)[None, None, :]
    scale = length / wanted
    low = first + target * scale
    shared = (torch.minimum(low + scale, source + 1.0) - torch.maximum(low, source + 0.0)).clamp(min=0)
    centre = low + 0.5 * scale - 0.5
    centre = torch.minimum(torch.maximum(centre, first + torch.zeros_like(centre)), first + length - 1)
    near = (1 - (centre - source).abs()).clamp(min=0)
    inside = (target >= 0) & (target < wanted)
    return torch.where(length > wanted, shared / scale, near) * inside


def _column(start: Tensor | float) -> Tensor | float:
    return start[:, None, None] if isinstance(start, Tensor) else start


def resample_maps(maps: Tensor, rows: Tensor, columns: Tensor, *, whole: bool = False) -> Tensor:
    """Resamples maps [B, C, H, W] by ``axis_matrix`` of both axes, columns first: [B, C, rows, columns] float32.

    ``whole`` rounds to whole numbers after each axis, as OpenCV does with 8-bit values.
    """
    resampled = maps.float() @ columns.transpose(1, 2)[:, None]
    if whole:
        resampled = resampled.round()
    resampled = rows[:, None] @ resampled
    return resampled.round() if whole else resampled


def cut_out(
    pixels: Tensor, first: Tensor, stride: Tensor, height: Tensor, width: Tensor, canvas: int
) -> Tensor:
    """RoIs out of the images of a batch: [B, 3, canvas, canvas] uint8; beyond an RoI its last row and column repeat.

    Args:
        pixels: [pixels, 3] uint8, the images one after the other, row by row.
        first: [B] int64, the row of ``pixels`` that holds each RoI's top left pixel.
        stride: [B] int64, pixels of its image's row.
        height, width: [B] float32, of the RoI.
    """
    place = torch.arange(canvas, device=pixels.device)
    y = torch.minimum(place, height.long()[:, None] - 1)
    x = torch.minimum(place, width.long()[:, None] - 1)
    index = (first[:, None] + y * stride[:, None])[:, :, None] + x[:, None]
    cut = pixels.index_select(0, index.flatten()).view(len(first), canvas, canvas, 3)
    return cut.permute(0, 3, 1, 2)


def rasterise(edges: Tensor, x0: Tensor, y0: Tensor, image_height: Tensor, canvas: int) -> Tensor:
    """Masks from where their runs end: [B, canvas, canvas] bool, of which only what lies inside the RoI counts.

    Args:
        edges: [B, runs] int64, ascending ends of the runs in pixels down the columns of the image (COCO's order,
            background first), filled up with a number beyond every image.
        x0, y0, image_height: [B] int64; the RoI's top left pixel.
    """
    place = torch.arange(canvas, device=edges.device)
    column = (x0[:, None] + place) * image_height[:, None] + y0[:, None]
    order = (column[:, None, :] + place[None, :, None]).flatten(1)
    passed = torch.searchsorted(edges, order, right=True)
    return (passed % 2 == 1).view(len(edges), canvas, canvas)


def spread_cells(cells: Tensor, height: Tensor, width: Tensor, canvas: int, y: Tensor, x: Tensor) -> Tensor:
    """Cells [B, g, g] as pixels [B, canvas, canvas], each pixel taking the cell that its centre lies in.

    The cells fill the part of the canvas of this height and width from row ``y`` and column ``x`` on, [B] float32 each.
    """
    grid = cells.shape[-1]

    def index(length: Tensor, start: Tensor) -> Tensor:
        place = torch.arange(canvas, device=cells.device) + 0.5
        return ((place - start[:, None]) * grid / length[:, None]).floor().clamp(0, grid - 1).long()

    rows = cells.gather(1, index(height, y)[:, :, None].expand(-1, -1, grid))
    return rows.gather(2, index(width, x)[:, None, :].expand(-1, canvas, -1))


def kept_patches(
    given: Tensor, refined: Tensor, inside: Tensor, shift: float, patch: float, rest: float
) -> tuple[Tensor, Tensor]:
    """``instance.patches_if_agreed`` of a batch.

    Args:
        given, refined, inside: [B, c, c] bool; the masks, False outside the RoIs, and the pixels of the RoIs.
        shift, patch, rest: the configuration's ``keep_shift``, ``keep_patch``, ``keep_rest``.

    Returns:
        [B] bool, the masks agree about the outline, and [B, c, c] bool, the patches in which they differ.
    """
    changed = given != refined
    nowhere = torch.zeros(len(given), dtype=torch.int64, device=given.device)
    left, top, right, bottom = boxes_of(given, nowhere, nowhere).unbind(1)
    side = ((right - left) * (bottom - top)).clamp(min=1).float().sqrt()
    before, after = _outline(given, inside), _outline(refined, inside)
    radius = (patch * side).clamp(min=LEAST_THICKNESS)
    cores = ~_dilated(~changed, radius, outside=True)
    patches = changed & _dilated(cores, 2 * radius, outside=False)
    near = F.max_pool2d(patches.float(), 3, 1, 1) > 0
    redrawn = _count(after & near) > MOST_REDRAWN * _count(after)
    length = torch.minimum(_count(before), _count(after)).clamp(min=1) * side
    moved, beside = _count(changed) / length, _count(changed & ~patches) / length
    return ~redrawn & ((moved <= shift) | (beside <= rest)), patches


def _count(mask: Tensor) -> Tensor:
    """[B, c, c] bool → [B] float32."""
    return mask.sum((1, 2)).float()


def _outline(mask: Tensor, inside: Tensor) -> Tensor:
    """Foreground pixels beside the background; the edge of an RoI is none."""
    return mask & (F.max_pool2d((inside & ~mask).float(), 3, 1, 1) > 0)


def _dilated(mask: Tensor, radius: Tensor, *, outside: bool) -> Tensor:
    """The pixels of [B, c, c] no further than ``radius`` [B] from one that is set, by Fourier transforms.

    ``outside`` says whether pixels beyond the canvas are set.
    """
    canvas = mask.shape[-1]
    frame = canvas // 16  # no radius is larger: keep_patch is a few percent of a side
    size = canvas + 2 * frame  # of powers of 2 times 9, which the transforms are fast for
    framed = F.pad(mask.float(), (frame, frame, frame, frame), value=float(outside))
    step = torch.fft.fftfreq(size, 1 / size, device=mask.device).round()  # 0, 1, …, -2, -1
    distance = step[:, None] ** 2 + step[None, :] ** 2
    disc = (distance <= radius[:, None, None] ** 2 + 1e-3).float()
    spread = torch.fft.irfft2(torch.fft.rfft2(framed) * torch.fft.rfft2(disc), s=(size, size))
    return spread[:, frame : frame + canvas, frame : frame + canvas] > 0.5


def boundaries(
    mask: Tensor, x0: Tensor, y0: Tensor, image_height: Tensor, capacity: int
) -> tuple[Tensor, Tensor]:
    """Where the runs of masks [B, c, c] begin and end, down the columns of their images; the inverse of ``rasterise``.

    Returns:
        counts [B] int64, and the places [capacity] int64 of all masks one after the other: pixels before each change
        from background to foreground or back. Only as many of them are right as fit.
    """
    columns = F.pad(mask.transpose(1, 2), (1, 1))  # [B, x, y] between two background pixels
    change = columns[:, :, 1:] != columns[:, :, :-1]
    place = torch.arange(mask.shape[-1] + 1, device=mask.device)
    column = (x0[:, None] + place[:-1]) * image_height[:, None] + y0[:, None]
    order = column[:, :, None] + place
    rank = torch.where(change, change.flatten().cumsum(0).view_as(change) - 1, capacity).clamp(max=capacity)
    found = torch.zeros(capacity + 1, dtype=torch.int64, device=mask.device)
    found.scatter_(0, rank.flatten(), order.flatten())
    return change.sum((1, 2)), found[:-1]


def tile_weights(start: Tensor, length: Tensor, whole: Tensor, canvas: int) -> Tensor:
    """``instance.edge_weights`` of a batch: [B, canvas], 0 outside the tile; [B] float32 each."""
    place = torch.arange(canvas, device=start.device) + 0.5 - start[:, None]
    slope = (length * OVERLAP).clamp(min=1)[:, None]
    rising = torch.where((start > 0)[:, None], place / slope, 1.0)
    falling = torch.where((start + length < whole)[:, None], (length[:, None] - place) / slope, 1.0)
    within = (place > 0) & (place < length[:, None])
    return torch.minimum(rising, falling).clamp(max=1) * within


def boxes_of(mask: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
    """Boxes of the foreground: [B, c, c] bool and the canvas' place in the image [B] → [B, 4] int64 XYXY, pixels."""
    sides = []
    for occupied, start in ((mask.any(1), x0), (mask.any(2), y0)):
        place = torch.arange(occupied.shape[1], device=mask.device)
        low = torch.where(occupied, place, occupied.shape[1]).amin(1)
        high = torch.where(occupied, place, -1).amax(1) + 1
        sides.append((start + low, start + high))
    (left, right), (top, bottom) = sides
    return torch.stack((left, top, right, bottom), 1)
