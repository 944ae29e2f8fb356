"""Quadtree nodes of one box: which cells they are (§4), what they read (§3), where their labels go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "NODE_GRIDS",
    "NODE_THRESHOLDS",
    "Nodes",
    "box_levels",
    "node_features",
    "propagate",
    "select_nodes",
]

#: Grids of the nodes' three levels.
NODE_GRIDS = (28, 56, 112)
#: Least incoherence of a node on each level; the release reads all three levels off one 28×28 map.
NODE_THRESHOLDS = (1e-6, 0.125, 0.8)

_FINEST, _COARSEST = 2, 5  # p2 … p5
_CANONICAL_LEVEL, _CANONICAL_SIDE = 4, 224  # a box of 224 pixels reads p4 (Lin et al. 2017)


@dataclass(frozen=True)
class Nodes:
    """The nodes of one box on one level, ordered by row and column.

    Attributes:
        grid: cells a side of the RoI on this level.
        cell: [n] int64, flat index into a [grid, grid] map.
        parent: [n] int64, index of the parent in the level above; -1 where there is none.
    """

    grid: int
    cell: Tensor
    parent: Tensor

    def __len__(self) -> int:
        return len(self.cell)

    @property
    def y(self) -> Tensor:
        """[n] int64, row of each node's cell."""
        return torch.div(self.cell, self.grid, rounding_mode="floor")

    @property
    def x(self) -> Tensor:
        """[n] int64, column of each node's cell."""
        return self.cell % self.grid


def select_nodes(
    incoherence: Tensor,
    always: Tensor | None = None,
    *,
    dilate_finest: bool = False,
    thresholds: Sequence[float] = NODE_THRESHOLDS,
) -> list[Nodes]:
    """The nodes of all levels.

    Args:
        incoherence: [28, 28] probabilities u; finer levels read them by nearest neighbour.
        always: [28, 28] bool, cells that are nodes on every level whatever u says.
        dilate_finest: the demo's: a 112-level cell is a node too if one of its eight neighbours is. The thresholds
            rise, so only nodes that this adds may be without a parent.
        thresholds: least u on each level.
    """
    levels: list[Nodes] = []
    above = torch.full((1, 1), -1, device=incoherence.device)  # index of each cell's node on the level above
    for grid, threshold in zip(NODE_GRIDS, thresholds, strict=True):
        selected = incoherence >= threshold
        if always is not None:
            selected = selected | always
        selected = _repeated(selected, grid)
        if dilate_finest and grid == NODE_GRIDS[-1]:
            selected = F.max_pool2d(selected[None].float(), 3, 1, 1)[0] > 0
        cell = selected.flatten().nonzero().squeeze(1)
        levels.append(Nodes(grid, cell, _repeated(above, grid).flatten()[cell]))
        above = torch.full((grid, grid), -1, device=cell.device)
        above.view(-1)[cell] = torch.arange(len(cell), device=cell.device)
    return levels


def _repeated(cells: Tensor, grid: int) -> Tensor:
    """[g, g] → [grid, grid], every cell as a square of cells."""
    times = grid // cells.shape[0]
    return cells.repeat_interleave(times, 0).repeat_interleave(times, 1)


def box_levels(boxes: Tensor) -> Tensor:
    """The pyramid level k of each box: [N, 4] XYXY pixels → [N] int64 in 2..5."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = (_CANONICAL_LEVEL + torch.log2(side / _CANONICAL_SIDE + 1e-8)).floor()
    return level.clamp(_FINEST, _COARSEST).long()


def node_features(tables: Sequence[Tensor], box: Tensor, level: int, nodes: Nodes) -> Tensor:
    """Features of nodes, each level of the tree one step finer than the one before: [n, C].

    Args:
        tables: p2 + S(p2), p3, p4, p5 of one image, [H, W, C] each.
        box: [4] float32 XYXY, pixels of the resized image.
        level: its pyramid level k.
        nodes: of one level of the tree.
    """
    finer = max(level - 1 - NODE_GRIDS.index(nodes.grid), _FINEST)
    return _roi_align_at(tables[finer - _FINEST], box / 2**finer, nodes)


def _roi_align_at(table: Tensor, box: Tensor, nodes: Nodes) -> Tensor:
    """RoIAlign (aligned, sampling ratio 0, as in torchvision and detectron2) at single cells of a box's grid.

    One weighted sum of table rows a node: as many samples a side as a cell has feature cells, four taps a sample.

    Args:
        table: [H, W, C].
        box: [4] XYXY in cells of the table.
        nodes: the cells.
    """
    # sides are differences of shifted corners because RoIAlign rounds them so, and the ceiling is not continuous
    start, end = box[:2] - 0.5, box[2:] - 0.5  # (x, y)
    cell = (end - start) / nodes.grid
    columns, rows = (max(int(count), 0) for count in cell.ceil().tolist())
    height, width, _ = table.shape
    if len(nodes) == 0 or rows * columns == 0:
        return table.new_zeros(len(nodes), table.shape[2])

    def taps(axis: int, index: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
        """Places on one axis of the two taps of each sample, and their weights: [n, count, 2] each."""
        step = torch.arange(count, device=index.device) + 0.5
        position = (start[axis] + index * cell[axis])[:, None] + step * (cell[axis] / count)
        inside = (position >= -1) & (position <= size)  # further out a sample counts as zero
        position = position.clamp(0, size - 1)
        low = position.floor()
        part = position - low
        weight = torch.stack((1 - part, part), 2) * inside[:, :, None]
        return torch.stack((low, (low + 1).clamp(max=size - 1)), 2).long(), weight

    (y, y_weight), (x, x_weight) = taps(1, nodes.y, rows, height), taps(0, nodes.x, columns, width)
    index = (y * width).flatten(1)[:, :, None] + x.flatten(1)[:, None]  # [n, 2 · rows, 2 · columns]
    weight = y_weight.flatten(1)[:, :, None] * x_weight.flatten(1)[:, None] / (rows * columns)
    return F.embedding_bag(
        index.flatten(1),
        table.flatten(0, 1),
        mode="sum",
        per_sample_weights=weight.flatten(1).to(table.dtype),
    )


def propagate(
    coarse: dict[int, Tensor], levels: Sequence[Nodes], labels: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Writes the nodes' labels into a given mask, level by level; cells outside the roots keep the mask.

    Args:
        coarse: grid → [grid, grid], the mask on each level.
        levels: the nodes, coarse to fine.
        labels: [n] foreground probability of each level's nodes.

    Returns:
        probability and, bool, what lies under the roots, [grid, grid] each, of each level.
    """
    maps: list[tuple[Tensor, Tensor]] = []
    for nodes, label in zip(levels, labels, strict=True):
        mask = coarse[nodes.grid].clone()
        refined = torch.zeros_like(mask, dtype=torch.bool)
        if maps:
            finer = F.interpolate(maps[-1][0][None, None], mask.shape, mode="bilinear")[0, 0]
            refined = _repeated(maps[-1][1], nodes.grid)
            mask = torch.where(refined, finer, mask)
        else:
            refined.view(-1)[nodes.cell] = True
        mask.view(-1)[nodes.cell] = label.to(mask.dtype)
        maps.append((mask, refined))
    return maps
