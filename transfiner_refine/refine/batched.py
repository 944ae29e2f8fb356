"""Many instances through the passes of the refiner at once, on a device: what ``instance.py`` does for one.

Images and runs go up once; cutting, resampling, the step, pasting, the comparison with the given mask, close-ups and the
search for run boundaries are batched tensor operations; boundaries and a few numbers come back, once a batch. Nothing in
between waits for the device. RoIs wait in groups of one size class and one canvas, whatever image they are from and
whichever pass they are in.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfiner_refine.formats.rle import RleMask
from transfiner_refine.refine.canvas import (
    axis_matrix,
    boundaries,
    boxes_of,
    cut_out,
    kept_patches,
    rasterise,
    resample_maps,
    spread_cells,
    window_weights,
)
from transfiner_refine.refine.close_up import OVERLAP, close_up_windows
from transfiner_refine.refine.engine import SizeClass, size_class
from transfiner_refine.refine.roi import Roi, overlap, read_mask, roi_around_box
from transfiner_refine.refine.torch_engine import TorchEngine
from transfiner_refine.types import MaskWindow

__all__ = ["BatchedPasses", "Group", "GroupResult", "fitting_batch", "refine_group"]

_SMALLEST_CANVAS = 64
_WINDOWS = 4  # of a large object
_BEYOND = 1 << 40  # fills up the ends of runs
_EDGES_A_COLUMN = 6  # on average; where there are more a batch goes again
_BYTES_A_PIXEL = 192  # of canvas, at the most at a time
_BYTES_A_ROI = 1 << 26  # in the step
_FEWEST_ROIS, _MOST_ROIS = 16, 512
_CPU_BYTES = 1 << 30
_AHEAD = 2  # batches that the device may be behind


class Group(NamedTuple):
    """RoIs that one program takes.

    Attributes:
        size: size class of the step.
        canvas: side of the canvas, a power of two.
        first: the first pass, after which the given mask may stay.
        window: size class of the close-ups; None without any.
        soft: coarse masks are probabilities.
    """

    size: SizeClass
    canvas: int
    first: bool
    window: SizeClass | None
    soft: bool


@dataclass(frozen=True)
class _Item:
    """An RoI that waits for its pass.

    Attributes:
        index: of the instance among those handed over.
        image: of its image.
        mask: the coarse mask of this pass.
        roi: what is looked at.
    """

    index: int
    image: int
    mask: RleMask | MaskWindow
    roi: Roi


class GroupResult(NamedTuple):
    """What comes of a batch.

    Attributes:
        numbers: [B, 9] int64: the given mask stays as it is; pixels changed by the first look; area and box (x0, y0, x1,
            y1, pixels of the image) after it; number of edges after it, and at the end.
        edges: [2, capacity] int64, ends of runs after the first look and at the end, instance by instance.
        probability: [B, canvas, canvas] float32 at the end.
    """

    numbers: Tensor
    edges: Tensor
    probability: Tensor


class _Part(NamedTuple):
    """Rectangles of canvases, [B] float32 each."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor


def refine_group(
    engine: TorchEngine,
    group: Group,
    pixels: Tensor,
    table: Tensor,
    edges: Tensor,
    soft: Tensor | None,
    edges_a_column: int,
) -> GroupResult:
    """One pass over a batch of RoIs of one group, with its close-ups.

    Args:
        engine: runs the step.
        group: the group.
        pixels: [pixels, 3] uint8, all images row by row.
        table: [B, 7 + 4 · windows] int64: row of ``pixels`` of the RoI's top left pixel, pixels of an image row, the
            image's height, the RoI's x0, y0, width, height; then of each close-up x, y, width, height in the RoI, 0 for
            those there are not.
        edges: [B, runs] int64, the coarse masks, see ``rasterise``.
        soft: [B, canvas, canvas] float32 in their place.
        edges_a_column: room for edges in the result, for every column of every canvas on average.
    """
    config, canvas = engine.config, group.canvas
    first, stride, image_height, x0, y0, w, h = table[:, :7].unbind(1)
    whole = _Part(torch.zeros_like(w).float(), torch.zeros_like(w).float(), w.float(), h.float())
    place = torch.arange(canvas, device=table.device)
    inside = (place < h[:, None])[:, :, None] & (place < w[:, None])[:, None, :]
    photo = cut_out(pixels, first, stride, whole.height, whole.width, canvas)
    coarse = rasterise(edges, x0, y0, image_height, canvas).float() if soft is None else soft
    coarse = coarse * inside

    refined = _look(engine, group.size, photo, coarse, whole) * inside
    given, after = coarse >= 0.5, refined >= 0.5
    changed, area = (given != after).sum((1, 2)), after.sum((1, 2))
    capacity = canvas * edges_a_column * table.shape[0]
    counts, ends = boundaries(after, x0, y0, image_height, capacity)
    result = refined
    if group.window is not None:
        result = _look_closer(engine, group.window, photo, refined, whole, table[:, 7:])
    stays = torch.zeros_like(area, dtype=torch.bool)
    if group.first:
        limits = config.keep_shift, config.keep_patch, config.keep_rest
        agreed, patches = kept_patches(given, after, inside, *limits)
        stays = agreed & ~patches.any(2).any(1)
        result = torch.where(agreed[:, None, None], torch.where(patches, refined, coarse), result)
        changed = torch.where(agreed, 0, changed)
    final_counts, final_ends = boundaries(result >= 0.5, x0, y0, image_height, capacity)
    boxes = boxes_of(after, x0, y0)
    columns = [each[:, None] for each in (stays.long(), changed, area)]
    numbers = torch.cat((*columns, boxes, counts[:, None], final_counts[:, None]), 1)
    return GroupResult(numbers, torch.stack((ends, final_ends)), result)


def _look(engine: TorchEngine, size: SizeClass, photo: Tensor, mask: Tensor, part: _Part) -> Tensor:
    """The step on a part of each canvas, pasted back into it.

    Args:
        engine, size: the step.
        photo: [B, 3, canvas, canvas] uint8.
        mask: [B, canvas, canvas] float32, the coarse mask.
        part: the rectangles.

    Returns:
        [B, canvas, canvas] float32; ``mask`` where nothing was relabelled.
    """
    canvas, side = photo.shape[-1], torch.full_like(part.width, size.side(engine.config))
    shape = size.side(engine.config), canvas
    both = side.repeat(2), torch.cat((part.height, part.width)), torch.cat((part.y, part.x))
    rows, columns = axis_matrix(*shape, both[0], both[1], 0.0, both[2]).chunk(2)
    resized = resample_maps(photo, rows, columns, whole=True).to(torch.uint8)
    output = engine.run(size, resized, resample_maps(mask[:, None], rows, columns))
    probability = output.probability.float()[:, None]
    grid = torch.full_like(side, probability.shape[-1])
    shape = canvas, probability.shape[-1]
    rows, columns = axis_matrix(*shape, both[1], grid.repeat(2), both[2]).chunk(2)
    relabelled = spread_cells(output.relabelled, part.height, part.width, canvas, part.y, part.x)
    return torch.where(relabelled, resample_maps(probability, rows, columns)[:, 0], mask)


def _look_closer(
    engine: TorchEngine, size: SizeClass, photo: Tensor, refined: Tensor, whole: _Part, windows: Tensor
) -> Tensor:
    """``refined`` [B, canvas, canvas] after close-ups in ``windows`` [B, 4 · windows]."""
    count = windows.shape[1] // 4

    def each_window(values: Tensor) -> Tensor:
        return values[:, None].expand(-1, count, *values.shape[1:]).flatten(0, 1)

    x, y, w, h = windows.float().view(-1, 4).unbind(1)
    part = _Part(x, y, w.clamp(min=1), h.clamp(min=1))
    before = each_window(refined)
    mask = (before >= 0.5).float()
    labels = _look(engine, size, each_window(photo), mask, part)
    canvas = photo.shape[-1]
    rows = window_weights(part.y, part.height, each_window(whole.height), canvas, OVERLAP)
    columns = window_weights(part.x, part.width, each_window(whole.width), canvas, OVERLAP)
    weight = rows[:, :, None] * columns[:, None, :] * (w > 0)[:, None, None]
    inside = weight > 0
    in_sight = (mask > 0) & inside
    has_outline = in_sight.any(2).any(1) & (in_sight != inside).any(2).any(1)
    values = torch.where(has_outline[:, None, None], labels, before) * weight
    total, weights = (each.unflatten(0, (-1, count)).sum(1) for each in (values, weight))
    return torch.where(weights > 0, total / weights.clamp(min=1e-6), refined)


class BatchedPasses:
    """Refines the masks of images in batches.

    Args:
        engine: runs the step.
        batch_size: RoIs at a time; less where they are large.
        close_ups: look at large objects once more, part by part.
    """

    def __init__(self, engine: TorchEngine, batch_size: int, *, close_ups: bool) -> None:
        self._engine, self._batch_size, self._close_ups = engine, batch_size, close_ups

    @torch.inference_mode()
    def refine(
        self,
        images: Sequence[NDArray[np.uint8]],
        masks: Sequence[RleMask | MaskWindow],
        image_index: Sequence[int],
        *,
        soft: bool = False,
    ) -> list[RleMask | MaskWindow]:
        """Refines masks that have foreground.

        Args:
            images: H×W×3 uint8 RGB each.
            masks: coarse masks; a window where it is soft.
            image_index: for each mask the position of its image.
            soft: give windows of probabilities.

        Returns:
            in the order of ``masks``: the refined mask, or the given one where it stays.
        """
        work = _Work(self._engine, images, list(masks), self._close_ups, soft)
        for index, (mask, image) in enumerate(zip(masks, image_index, strict=True)):
            box = mask.box if isinstance(mask, RleMask) else _box_of(mask)
            work.wait(_Item(index, image, mask, self._roi(box, mask)), first=True)
        running: deque[tuple[Group, list[_Item], _Pending]] = deque()
        while work.groups or running:
            if work.groups and len(running) < _AHEAD:
                group, items = work.next_batch(self._batch_size)
                running.append((group, items, work.launch(group, items)))
            else:
                work.finish(*running.popleft())
        return work.results

    def _roi(self, box: tuple[int, int, int, int], mask: RleMask | MaskWindow) -> Roi:
        size = mask.size if isinstance(mask, RleMask) else mask.image_size
        return roi_around_box(box, size, self._engine.config)


class _Pending:
    """A result on its way to the host; reading it waits for it."""

    def __init__(self, result: GroupResult, *, soft: bool) -> None:
        numbers, edges, probability = result
        self._on_device = numbers.device.type != "cpu"
        flat = torch.cat((numbers.flatten(), edges.flatten()))  # one read-back
        self._shape = numbers.shape
        self._flat, self._soft = self._back(flat), self._back(probability) if soft else None
        self._event = None
        if numbers.device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record()

    @staticmethod
    def _back(values: Tensor) -> Tensor:
        if values.device.type != "cuda":
            return values.cpu()
        pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return pinned.copy_(values, non_blocking=True)

    def read(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None]:
        """``GroupResult`` as arrays."""
        if self._event is not None:
            self._event.synchronize()
        flat = self._flat.numpy()
        count = self._shape.numel()
        numbers, edges = flat[:count].reshape(self._shape), flat[count:].reshape(2, -1)
        return numbers, edges, None if self._soft is None else self._soft.numpy()


class _Work:
    """The instances of one call, on their way."""

    def __init__(
        self,
        engine: TorchEngine,
        images: Sequence[NDArray[np.uint8]],
        masks: list[RleMask | MaskWindow],
        close_ups: bool,
        soft: bool,
    ) -> None:
        self.groups: dict[Group, list[_Item]] = defaultdict(list)
        self.results: list[RleMask | MaskWindow] = masks
        self._engine, self._close_ups, self._soft = engine, close_ups, soft
        self._images = images
        self._canvas_pixels = free_bytes(engine.torch_device) // 2 // _BYTES_A_PIXEL
        starts = np.cumsum([0, *(image.shape[0] * image.shape[1] for image in images)])
        self._starts = starts.tolist()
        together = torch.empty((int(starts[-1]), 3), dtype=torch.uint8, pin_memory=self._pinned)
        for image, start, stop in zip(images, starts, starts[1:], strict=False):
            together[start:stop] = torch.from_numpy(image.reshape(-1, 3))
        self._pixels = self._up(together)

    @property
    def _pinned(self) -> bool:
        return self._engine.torch_device.type == "cuda"

    def _up(self, values: Tensor) -> Tensor:
        """To the device, without waiting for it."""
        if self._pinned and not values.is_pinned():
            values = values.pin_memory()
        return values.to(self._engine.torch_device, non_blocking=self._pinned)

    def wait(self, item: _Item, *, first: bool) -> None:
        """Puts an RoI in its group."""
        config = self._engine.config
        window = None
        if self._close_ups and item.roi.side >= config.close_up_from:
            part = close_up_windows(item.roi)[0]
            window = size_class(config, part.side, nodes=False)
        canvas = max(_SMALLEST_CANVAS, 1 << (item.roi.side - 1).bit_length())
        size = size_class(config, item.roi.side, nodes=first)
        self.groups[Group(size, canvas, first, window, isinstance(item.mask, MaskWindow))].append(item)

    def next_batch(self, batch_size: int) -> tuple[Group, list[_Item]]:
        """The RoIs to refine next: of the group with most of them."""
        group = max(self.groups, key=lambda each: len(self.groups[each]))
        items = self.groups[group]
        share = _WINDOWS if group.window is not None else 1
        fitting = self._canvas_pixels // (share * group.canvas**2)
        most = max(1, min(batch_size // share, fitting))
        batch, rest = items[:most], items[most:]
        if rest:
            self.groups[group] = rest
        else:
            del self.groups[group]
        return group, batch

    def launch(self, group: Group, items: list[_Item], edges_a_column: int = _EDGES_A_COLUMN) -> _Pending:
        """Starts the pass of a batch."""
        table = np.zeros((len(items), 7 + 4 * _WINDOWS), np.int64)
        for row, item in zip(table, items, strict=True):
            height, width = self._images[item.image].shape[:2]
            roi = item.roi
            corner = self._starts[item.image] + roi.y0 * width + roi.x0
            row[:7] = corner, width, height, roi.x0, roi.y0, roi.width, roi.height
            if group.window is not None:
                parts = [(p.x0 - roi.x0, p.y0 - roi.y0, p.width, p.height) for p in close_up_windows(roi)]
                row[7 : 7 + 4 * len(parts)] = np.ravel(parts)
        soft, edges = None, torch.zeros(0)
        if group.soft:
            values = np.zeros((len(items), group.canvas, group.canvas), np.float32)
            for canvas, item in zip(values, items, strict=True):
                assert isinstance(item.mask, MaskWindow)
                canvas[: item.roi.height, : item.roi.width] = read_mask(item.mask, item.roi)
            soft = self._up(torch.from_numpy(values))
        else:
            ends = [np.cumsum(item.mask.runs)[:-1] for item in items if isinstance(item.mask, RleMask)]
            longest = 1 << max(len(each) for each in ends).bit_length()
            filled = np.full((len(items), longest), _BEYOND, np.int64)
            for row, each in zip(filled, ends, strict=True):
                row[: len(each)] = each
            edges = self._up(torch.from_numpy(filled))
        rows = self._up(torch.from_numpy(table))
        result = refine_group(self._engine, group, self._pixels, rows, edges, soft, edges_a_column)
        return _Pending(result, soft=self._soft)

    def finish(self, group: Group, items: list[_Item], pending: _Pending) -> None:
        """Takes in what came of a batch: results, and RoIs of further passes."""
        config = self._engine.config
        numbers, edges, probability = pending.read()
        if (numbers[:, 7:].sum(0) > edges.shape[1]).any():
            self.finish(group, items, self.launch(group, items, group.canvas + 1))
            return
        stops = np.cumsum(numbers[:, 7:], 0)
        for row, (item, (stays, changed, area, x0, y0, x1, y1, count, final)) in enumerate(
            zip(items, numbers.tolist(), strict=True)
        ):
            if stays:
                continue  # the given mask
            height, width = size = self._images[item.image].shape[:2]

            def mask(which: int, number: int) -> RleMask:
                ends = edges[which, stops[row, which] - number : stops[row, which]]
                return RleMask.from_runs(np.diff(ends, prepend=0, append=height * width), size)

            given_area = item.mask.area
            if group.first and area and config.passes > 1 and changed >= config.repeat_share * given_area:
                moved = roi_around_box((x0, y0, x1, y1), size, config)
                if group.window is None or overlap(item.roi, moved) < config.repeat_overlap:
                    self.wait(_Item(item.index, item.image, mask(0, count), moved), first=False)
                    continue
            if self._soft:
                assert probability is not None
                values = probability[row, : item.roi.height, : item.roi.width].copy()
                self.results[item.index] = MaskWindow(values, item.roi.x0, item.roi.y0, size)
            else:
                self.results[item.index] = mask(1, final)


def fitting_batch(device: torch.device) -> int:
    """RoIs at a time that the memory of a device has room for, a power of two."""
    fitting = free_bytes(device) // 2 // _BYTES_A_ROI
    return min(_MOST_ROIS, max(_FEWEST_ROIS, 1 << (max(1, fitting).bit_length() - 1)))


def free_bytes(device: torch.device) -> int:
    """Memory of a device that a batch may fill."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return _CPU_BYTES


def _box_of(mask: MaskWindow) -> tuple[int, int, int, int]:
    tight = mask.tight()
    h, w = tight.values.shape
    return tight.x, tight.y, tight.x + w, tight.y + h
