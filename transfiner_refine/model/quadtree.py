"""The quadtree over the incoherent regions, as flat arrays: no objects, no per-instance loop.

Ke et al. 2022, §3.1: roots are incoherent cells of the 28 level; each splits in four quadrants on the next
level, kept where that level's detector fires.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["NodeSelector", "QuadtreeLevel", "ThresholdSelector", "children_of", "roots_of"]


@dataclass(frozen=True)
class QuadtreeLevel:
    """The nodes of all instances on one level, ordered by instance.

    Attributes:
        grid: cells a side of the RoI on this level (28, 56, 112, …).
        instance: [n] int64, the instance each node belongs to, ascending.
        y: [n] int64, row of the node's cell.
        x: [n] int64, column of the node's cell.
        parent: [n] int64, index of the parent in the level above; -1 for roots.
    """

    grid: int
    instance: Tensor
    y: Tensor
    x: Tensor
    parent: Tensor

    def __len__(self) -> int:
        return len(self.instance)

    def take(self, index: Tensor) -> QuadtreeLevel:
        """The nodes at ``index`` ([m] int64, ascending, so the order by instance stays)."""
        return QuadtreeLevel(
            self.grid,
            self.instance.index_select(0, index),
            self.y.index_select(0, index),
            self.x.index_select(0, index),
            self.parent.index_select(0, index),
        )

    @property
    def cell(self) -> Tensor:
        """[n] int64, flat index into a [instances, grid, grid] map."""
        return (self.instance * self.grid + self.y) * self.grid + self.x


def roots_of(selected: Tensor) -> QuadtreeLevel:
    """Roots from a [B, grid, grid] bool map, in order of instance, row, column."""
    instance, y, x = selected.nonzero(as_tuple=True)
    return QuadtreeLevel(selected.shape[-1], instance, y, x, torch.full_like(instance, -1))


def children_of(level: QuadtreeLevel) -> QuadtreeLevel:
    """The four quadrants of every node, those of one node in a row: (top left, top right, bottom left, …)."""
    quadrant = torch.arange(4, device=level.y.device)
    parent = torch.arange(len(level), device=level.y.device)
    return QuadtreeLevel(
        level.grid * 2,
        level.instance.repeat_interleave(4),
        (level.y[:, None] * 2 + quadrant // 2).flatten(),
        (level.x[:, None] * 2 + quadrant % 2).flatten(),
        parent.repeat_interleave(4),
    )


class NodeSelector(Protocol):
    """Decides which cells become nodes; inference thresholds, training samples."""

    def roots(self, wrong: Tensor, incoherent: Tensor) -> QuadtreeLevel:
        """The roots, from the detector's two [B, grid, grid] probabilities."""

    def keep(self, candidates: QuadtreeLevel, probability: Tensor) -> Tensor:
        """Ascending indices of the candidates that become nodes, from the detector's [n] probabilities."""


class ThresholdSelector(NodeSelector):
    """Keeps the cells whose probability reaches a threshold, down to each instance's own depth.

    Args:
        depth: [B] int64, number of levels of each instance's quadtree.
        relabel_threshold: least probability that the coarse mask is wrong in a root.
        root_threshold: least probability that a root is incoherent.
        child_threshold: least probability of a node on the finer levels.
        root_grid: grid of the first level.
    """

    def __init__(
        self,
        depth: Tensor,
        relabel_threshold: float,
        root_threshold: float,
        child_threshold: float,
        root_grid: int,
    ) -> None:
        self.depth, self.root_grid, self.relabel_threshold = depth, root_grid, relabel_threshold
        self.root_threshold, self.child_threshold = root_threshold, child_threshold

    def roots(self, wrong: Tensor, incoherent: Tensor) -> QuadtreeLevel:
        return roots_of((wrong >= self.relabel_threshold) & (incoherent >= self.root_threshold))

    def keep(self, candidates: QuadtreeLevel, probability: Tensor) -> Tensor:
        level = (candidates.grid // self.root_grid).bit_length()  # 1-based: 28 → 1, 56 → 2, …
        deep_enough = self.depth.index_select(0, candidates.instance) >= level
        return ((probability >= self.child_threshold) & deep_enough).nonzero().squeeze(1)
