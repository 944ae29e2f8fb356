"""One pass over many RoIs at once, on a device: what ``instance.py`` does for one, as batched tensor operations.

Cutting, resampling, the step, pasting, the comparison with the given mask, close-ups and the search for run boundaries
follow each other without waiting for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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
from transfiner_refine.refine.close_up import OVERLAP
from transfiner_refine.refine.engine import SizeClass
from transfiner_refine.refine.torch_engine import TorchEngine

__all__ = ["Group", "GroupResult", "refine_group"]


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


class GroupResult(NamedTuple):
    """What comes of a batch.

    Attributes:
        numbers: [B, 9] int64: the given mask stays as it is; it agrees about the outline; area and box (x0, y0,
            x1, y1, pixels of the image) after it; number of edges after it, and at the end.
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
    area = after.sum((1, 2))
    capacity = canvas * edges_a_column * table.shape[0]
    counts, ends = boundaries(after, x0, y0, image_height, capacity)
    result = refined
    if group.window is not None:
        result = _look_closer(engine, group.window, photo, refined, whole, table[:, 7:])
    stays = agreed = torch.zeros_like(area, dtype=torch.bool)
    if group.first:
        limits = config.keep_shift, config.keep_patch, config.keep_rest
        agreed, patches = kept_patches(given, after, inside, *limits)
        stays = agreed & ~patches.any(2).any(1)
        result = torch.where(agreed[:, None, None], torch.where(patches, refined, coarse), result)
    final_counts, final_ends = boundaries(result >= 0.5, x0, y0, image_height, capacity)
    boxes = boxes_of(after, x0, y0)
    columns = [each[:, None] for each in (stays.long(), agreed.long(), area)]
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
    total, weights = (each.view(-1, count, *each.shape[1:]).sum(1) for each in (values, weight))
    return torch.where(weights > 0, total / weights.clamp(min=1e-6), refined)
