"""Quadtree nodes of one box: which cells they are (§4), and where their labels go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

#: Grids of the nodes' three levels.
NODE_GRIDS = (28, 56, 112)
#: Least incoherence of a node on each level; the release reads all three levels off one 28×28 map.
NODE_THRESHOLDS = (1e-6, 0.125, 0.8)


@dataclass(frozen=True)
class Nodes:
    """The nodes of one box on one level, ordered by row and column."""

    grid: int  # cells a side of the RoI on this level
    cell: Tensor  # [n] int64, flat index into a [grid, grid] map
    parent: Tensor  # [n] int64, index of the parent in the level above; -1 where there is none

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
    incoherence: Tensor, always: Tensor | None = None, thresholds: Sequence[float] = NODE_THRESHOLDS
) -> list[Nodes]:
    """The nodes of all levels: where ``incoherence`` [28, 28] reaches the level's threshold, or ``always`` is set.

    Finer levels read both by nearest neighbour. Thresholds rise, so every node below the first level has a parent.
    """
    levels: list[Nodes] = []
    above = torch.full((1, 1), -1, device=incoherence.device)  # index of each cell's node on the level above
    for grid, threshold in zip(NODE_GRIDS, thresholds, strict=True):
        selected = incoherence >= threshold
        if always is not None:
            selected = selected | always
        cell = _repeated(selected, grid).flatten().nonzero().squeeze(1)
        levels.append(Nodes(grid, cell, _repeated(above, grid).flatten()[cell]))
        above = torch.full((grid, grid), -1, device=cell.device)
        above.view(-1)[cell] = torch.arange(len(cell), device=cell.device)
    return levels


def _repeated(cells: Tensor, grid: int) -> Tensor:
    """[g, g] → [grid, grid], every cell as a square of cells."""
    times = grid // cells.shape[0]
    return cells.repeat_interleave(times, 0).repeat_interleave(times, 1)


def propagate(
    coarse: dict[int, Tensor], levels: Sequence[Nodes], labels: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Writes the nodes' labels into a given mask, level by level; cells outside the roots keep the mask.

    ``coarse`` is the mask [grid, grid] on each grid, ``labels`` the [n] foreground probabilities of each level's nodes.
    Returns of each level the probability and, bool, what lies under the roots, [grid, grid] each.
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
