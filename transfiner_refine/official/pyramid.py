"""RoIAlign at single cells of an RoI's grid, on the maps of a feature pyramid (Ke et al. 2022, §3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["FeaturePyramid", "roi_align_on_levels"]


@dataclass(frozen=True)
class FeaturePyramid:
    """Feature maps of several resolutions as one table of rows, so that one gather serves nodes of all levels.

    Attributes:
        rows: [Σ batch · height · width, channels], map after map.
        first: [maps] int64, the first row of each map.
        height, width: [maps] float32, size of each map in cells.
        scale: [maps] float32, cells per pixel of the frame that boxes are given in.
    """

    rows: Tensor
    first: Tensor
    height: Tensor
    width: Tensor
    scale: Tensor

    @classmethod
    def of(cls, maps: Sequence[Tensor], scales: Sequence[float]) -> FeaturePyramid:
        """maps [B, C, H_i, W_i] with the cells per pixel of each."""
        tables = [each.permute(0, 2, 3, 1).flatten(0, 2) for each in maps]
        lengths = [len(table) for table in tables]
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        device = maps[0].device

        def per_map(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        return cls(
            torch.cat(tables),
            torch.tensor(starts, device=device),
            per_map([each.shape[2] for each in maps]),
            per_map([each.shape[3] for each in maps]),
            per_map(scales),
        )


def roi_align_on_levels(
    pyramid: FeaturePyramid, level: Tensor, batch: Tensor, boxes: Tensor, grid: int, y: Tensor, x: Tensor
) -> Tensor:
    """RoIAlign (aligned, as in torchvision and detectron2) at single cells, every node on its own map of a pyramid.

    Args:
        pyramid: the maps to read.
        level: [n] int64, which map each node reads.
        batch: [n] int64, which image of the batch.
        boxes: [n, 4] XYXY float32 of each node's RoI, pixels.
        grid: the RoI is divided in grid × grid cells.
        y, x: [n] the node's cell in that grid.

    Returns:
        [n, C], with sampling ratio 0: as many samples a side as the RoI has feature cells per cell, rounded up.
    """
    height, width = pyramid.height.index_select(0, level), pyramid.width.index_select(0, level)
    first = pyramid.first.index_select(0, level) + batch * (height * width).long()
    scaled = boxes * pyramid.scale.index_select(0, level)[:, None]
    return _align_adaptively(pyramid.rows, first, height, width, scaled, grid, y, x)


def _align_adaptively(
    rows: Tensor, first: Tensor, height: Tensor, width: Tensor, boxes: Tensor, grid: int, y: Tensor, x: Tensor
) -> Tensor:
    """RoIAlign with sampling ratio 0 as one weighted sum of table rows per node.

    Args:
        rows: [positions, C] the table.
        first: [n] int64, row of the table where the node's map begins.
        height, width: [n] float32, size of that map, cells.
        boxes: [n, 4] XYXY of the node's RoI, in cells of that map.
        grid, y, x: the node's cell, as above.

    Returns:
        [n, C].
    """
    if len(y) == 0:
        return rows.new_zeros(0, rows.shape[1])
    # sides are differences of shifted corners because RoIAlign rounds them so, and the ceiling is not continuous
    start, end = boxes[:, :2] - 0.5, boxes[:, 2:] - 0.5  # [n, 2] as (x, y)
    cell = (end - start) / grid
    counts = cell.ceil().long().clamp(min=0)
    total = counts[:, 0] * counts[:, 1]  # [n] samples of each node
    offset = total.cumsum(0) - total
    node = torch.repeat_interleave(torch.arange(len(y), device=y.device), total)  # [samples]
    rank = torch.arange(len(node), device=y.device) - offset.index_select(0, node)
    columns = counts[:, 0].index_select(0, node)

    def taps(axis: int, index: Tensor, step: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """``_axis`` of the samples on one axis, from the node's cell and the sample's place in it."""
        begin = start[:, axis] + index * cell[:, axis]  # [n]
        spacing = cell[:, axis] / counts[:, axis]
        position = begin.index_select(0, node) + (step + 0.5) * spacing.index_select(0, node)
        return _axis(position, size.index_select(0, node))

    row_step = torch.div(rank, columns, rounding_mode="floor")
    y_low, y_high, y_part, y_in = taps(1, y, row_step, height)
    x_low, x_high, x_part, x_in = taps(0, x, rank - row_step * columns, width)
    share = (y_in & x_in).to(cell.dtype) / total.index_select(0, node)  # [samples]
    base, stride = first.index_select(0, node), width.index_select(0, node).long()
    low, high = base + y_low * stride, base + y_high * stride
    index = torch.stack((low + x_low, low + x_high, high + x_low, high + x_high), 1)  # [samples, 4]
    row_weight = torch.stack((1 - y_part, y_part), 1) * share[:, None]  # [samples, 2]
    weight = row_weight[:, :, None] * torch.stack((1 - x_part, x_part), 1)[:, None, :]  # [samples, 2, 2]
    return F.embedding_bag(
        index.flatten(), rows, offset * 4, mode="sum", per_sample_weights=weight.flatten().to(rows.dtype)
    )


def _axis(position: Tensor, size: int | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bilinear taps on one axis: (low index, high index, weight of high, inside?), as RoIAlign clamps them."""
    inside = (position >= -1.0) & (position <= size)
    if isinstance(size, Tensor):  # [n], each node on a map of its own
        position = position.clamp(min=0).minimum(size - 1)
        low = position.floor()
        high = (low + 1).minimum(size - 1)
    else:
        position = position.clamp(0, size - 1)
        low = position.floor()
        high = (low + 1).clamp(max=size - 1)
    return low.long(), high.long(), position - low, inside
