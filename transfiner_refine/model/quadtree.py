"""The quadtree over the incoherent regions, with a fixed number of places for nodes on every level.

Ke et al. 2022, §3.1: roots are incoherent cells of the 28 level; each splits in four quadrants on the next level,
kept where that level's detector fires. Where fewer cells reach the threshold than a level has places, the rest are
marked as not valid; where more do, the least probable are left out. So no shape depends on data, and the whole step is
one program (``torch.export``, ONNX, CUDA graphs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from transfiner_refine.model.config import ATTENTION_GRIDS, RefinerConfig
from transfiner_refine.model.pyramid import first_rows


@dataclass(frozen=True)
class QuadtreeNodes:
    """The nodes of one level."""

    grid: int  # cells a side of the RoI on this level (28, 56, 112, …)
    y: Tensor  # [B, K] int64, row of each node's cell
    x: Tensor  # [B, K] int64, column of each node's cell
    parent: Tensor  # [B, K] int64, index of the parent in the level above; -1 for roots
    valid: Tensor | None = None  # [B, K] bool, False for places without a node; None if there are none

    @property
    def cell(self) -> Tensor:
        """[B, K] int64, flat index into a [grid, grid] map."""
        return self.y * self.grid + self.x

    def exists(self) -> Tensor:
        """[B, K] bool, the places that hold a node."""
        return torch.ones_like(self.y, dtype=torch.bool) if self.valid is None else self.valid

    def around(self) -> Tensor:
        """[B, K, 9] int64, rows of the 3×3 cells around each in a ``FeatureMap`` of the grid, edge cells repeated."""
        offset = torch.arange(-1, 2, device=self.y.device)
        rows = (self.y[:, :, None] + offset).clamp(0, self.grid - 1) * self.grid
        columns = (self.x[:, :, None] + offset).clamp(0, self.grid - 1)
        rows = rows + first_rows(self.y, self.grid)[:, :, None]
        return (rows[:, :, :, None] + columns[:, :, None, :]).flatten(2)

    def take(self, index: Tensor, valid: Tensor | None) -> QuadtreeNodes:
        """The nodes at ``index`` [B, K'] int64, of which ``valid`` [B, K'] exist."""
        return QuadtreeNodes(
            self.grid, self.y.gather(1, index), self.x.gather(1, index), self.parent.gather(1, index), valid
        )


def root_cells(grid: int, instances: Tensor) -> QuadtreeNodes:
    """All cells of the first level as candidates, row by row, for as many instances as ``instances`` is long."""
    cell = torch.arange(grid * grid, device=instances.device).expand(instances.shape[0], -1)
    y, x = cell.div(grid, rounding_mode="floor"), cell.remainder(grid)
    return QuadtreeNodes(grid, y, x, torch.full_like(cell, -1))


def children_of(level: QuadtreeNodes) -> QuadtreeNodes:
    """The four quadrants of every node, those of one node in a row: (top left, top right, bottom left, …)."""
    quadrant = torch.arange(4, device=level.y.device)
    parent = torch.arange(level.y.shape[1], device=level.y.device)[:, None].expand(-1, 4).flatten()
    valid = level.valid
    return QuadtreeNodes(
        level.grid * 2,
        (level.y[:, :, None] * 2 + quadrant // 2).flatten(1),
        (level.x[:, :, None] * 2 + quadrant % 2).flatten(1),
        parent.expand(level.y.shape[0], -1),
        None if valid is None else valid[:, :, None].expand(-1, -1, 4).flatten(1),
    )


class NodeSelector(Protocol):
    """Decides which cells become nodes: inference takes the most probable, training draws."""

    def roots(self, wrong: Tensor, incoherent: Tensor) -> QuadtreeNodes:
        """The roots, from the detector's two [B, grid, grid] probabilities."""

    def keep(self, candidates: QuadtreeNodes, probability: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the detector's [B, K] probabilities: indices [B, K'] of nodes, and which exist [B, K']; None if all."""


class BudgetSelector(NodeSelector):
    """Takes the most probable cells of each level, of those that reach the threshold."""

    def __init__(self, config: RefinerConfig) -> None:
        self.config = config

    def roots(self, wrong: Tensor, incoherent: Tensor) -> QuadtreeNodes:
        score = torch.where(wrong >= self.config.relabel_threshold, incoherent, -1.0).flatten(1)
        cells = root_cells(wrong.shape[-1], wrong)
        return cells.take(*self._most_probable(0, score, self.config.root_threshold))

    def keep(self, candidates: QuadtreeNodes, probability: Tensor) -> tuple[Tensor, Tensor | None]:
        if candidates.valid is not None:
            probability = torch.where(candidates.valid, probability, -1.0)
        level = (candidates.grid // ATTENTION_GRIDS[0]).bit_length() - 1
        return self._most_probable(level, probability, self.config.child_threshold)

    def _most_probable(self, level: int, score: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        best, index = score.topk(min(self.config.node_budget[level], score.shape[1]), 1)
        return index, best >= threshold
