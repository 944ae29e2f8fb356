"""One pass over many RoIs at once, on a device: what ``instance.py`` does for one, as batched tensor operations.

Cutting, resampling, the step, pasting, the comparison with the given mask, tiles and the search for run boundaries
follow each other without waiting for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from transfiner_refine.refine import canvas as on_canvas
from transfiner_refine.refine.engine import SizeClass
from transfiner_refine.refine.torch_engine import TorchEngine


class Group(NamedTuple):
    """RoIs that one program takes."""

    size: SizeClass  # size class of the step
    canvas: int  # side of the canvas, a power of two
    first: bool  # the first pass, after which the given mask may stay
    window: SizeClass | None  # size class of its tiles; None without any
    soft: bool  # coarse masks are probabilities


class GroupResult(NamedTuple):
    """The result of a batch."""

    # [B, 9] int64: the given mask stays as it is; it agrees about the outline; after the first look area, box (x0, y0,
    # x1, y1, pixels of the image) and number of edges; number of edges at the end
    numbers: Tensor
    edges: Tensor  # [2, capacity] int64, ends of runs after the first look and at the end
    probability: Tensor  # [B, canvas, canvas] float32 at the end


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
    """One pass over a batch of RoIs of one group, with its tiles.

    Args:
        pixels: [pixels, 3] uint8, all images row by row.
        table: [B, 7 + 4 · windows] int64: row of ``pixels`` of the RoI's top left pixel, pixels of an image row, the
            image's height, the RoI's x0, y0, width, height; then of each tile x, y, width, height in the RoI, 0 for
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
    image = on_canvas.cut_out(pixels, first, stride, whole.height, whole.width, canvas)
    if soft is None:
        soft = on_canvas.rasterise(edges, x0, y0, image_height, canvas).float()
    coarse = soft * inside

    refined = _look(engine, group.size, image, coarse, whole) * inside
    given, after = coarse >= 0.5, refined >= 0.5
    area = after.sum((1, 2))
    capacity = canvas * edges_a_column * table.shape[0]
    counts, ends = on_canvas.boundaries(after, x0, y0, image_height, capacity)
    result = refined
    if group.window is not None:
        result = _tiles(engine, group.window, image, refined, whole, table[:, 7:])
    stays = agreed = torch.zeros_like(area, dtype=torch.bool)
    if group.first:
        limits = config.keep_shift, config.keep_patch, config.keep_rest
        agreed, patches = on_canvas.kept_patches(given, after, inside, *limits)
        stays = agreed & ~patches.any(2).any(1)
        result = torch.where(agreed[:, None, None], torch.where(patches, refined, coarse), result)
    final_counts, final_ends = on_canvas.boundaries(result >= 0.5, x0, y0, image_height, capacity)
    boxes = on_canvas.boxes_of(after, x0, y0)
    columns = [each[:, None] for each in (stays.long(), agreed.long(), area)]
    numbers = torch.cat((*columns, boxes, counts[:, None], final_counts[:, None]), 1)
    return GroupResult(numbers, torch.stack((ends, final_ends)), result)


def _look(engine: TorchEngine, size: SizeClass, image: Tensor, mask: Tensor, part: _Part) -> Tensor:
    """The step on a part of each canvas, pasted back into it: [B, canvas, canvas] float32.

    ``image`` is [B, 3, canvas, canvas] uint8, ``mask`` the coarse mask, which stays where nothing was relabelled.
    """
    canvas, step_side = image.shape[-1], size.side(engine.config)
    # both axes at once: rows, then columns
    length, start = torch.cat((part.height, part.width)), torch.cat((part.y, part.x))
    side, grid = torch.full_like(length, step_side), torch.full_like(length, size.grid)
    rows, columns = on_canvas.axis_matrix(step_side, canvas, side, length, 0.0, start).chunk(2)
    resized = on_canvas.resample_maps(image, rows, columns, whole=True).to(torch.uint8)
    output = engine.run(size, resized, on_canvas.resample_maps(mask[:, None], rows, columns))
    rows, columns = on_canvas.axis_matrix(canvas, size.grid, length, grid, start).chunk(2)
    values = on_canvas.resample_maps(output.probability.float()[:, None], rows, columns)[:, 0]
    cells = output.relabelled
    relabelled = on_canvas.spread_cells(cells, part.height, part.width, canvas, part.y, part.x)
    return torch.where(relabelled, values, mask)


def _tiles(
    engine: TorchEngine, size: SizeClass, image: Tensor, refined: Tensor, whole: _Part, windows: Tensor
) -> Tensor:
    """``refined`` [B, canvas, canvas] after another look at its tiles ``windows`` [B, 4 · windows]."""
    count, canvas = windows.shape[1] // 4, image.shape[-1]

    def each_window(values: Tensor) -> Tensor:
        return values[:, None].expand(-1, count, *values.shape[1:]).flatten(0, 1)

    x, y, w, h = windows.float().view(-1, 4).unbind(1)
    part = _Part(x, y, w.clamp(min=1), h.clamp(min=1))
    before = each_window(refined)
    mask = (before >= 0.5).float()
    labels = _look(engine, size, each_window(image), mask, part)
    rows = on_canvas.tile_weights(part.y, part.height, each_window(whole.height), canvas)
    columns = on_canvas.tile_weights(part.x, part.width, each_window(whole.width), canvas)
    weight = rows[:, :, None] * columns[:, None, :] * (w > 0)[:, None, None]
    inside = weight > 0
    foreground = (mask > 0) & inside
    has_outline = foreground.any(2).any(1) & (foreground != inside).any(2).any(1)
    values = torch.where(has_outline[:, None, None], labels, before) * weight
    total, weights = (each.view(-1, count, *each.shape[1:]).sum(1) for each in (values, weight))
    return torch.where(weights > 0, total / weights.clamp(min=1e-6), refined)
