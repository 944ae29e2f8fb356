"""Quadtree nodes of a batch as flat arrays of any length, as the authors' network has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from transfiner_refine.model.propagate import LevelMap

__all__ = ["QuadtreeLevel", "pack", "propagate", "roots_of"]


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


def pack(instance: Tensor, instances: int) -> tuple[Tensor, Tensor, int]:
    """Places flat tokens in a padded [instances, longest] layout; a sequence keeps the order of its tokens.

    Args:
        instance: [t] int64, the instance of each token, in any order.
        instances: number of instances.

    Returns:
        slot [t] int64: index of each token in the flattened [instances · longest] layout;
        counts [instances] int64: tokens of each sequence;
        longest: the largest count.
    """
    counts = torch.bincount(instance, minlength=instances)
    longest = int(counts.max())
    order = torch.argsort(instance, stable=True)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(instance)
    rank[order] = torch.arange(len(instance), device=instance.device) - first.index_select(0, instance[order])
    return instance * longest + rank, counts, longest


def propagate(
    coarse: dict[int, Tensor], levels: list[QuadtreeLevel], probabilities: list[Tensor]
) -> list[LevelMap]:
    """Propagates node labels through all levels.

    Args:
        coarse: grid → [B, 1, grid, grid] coarse mask, from ``halvings``.
        levels: the nodes of each level, coarse to fine.
        probabilities: [n] foreground probability of each level's nodes.

    Returns:
        the map of each level.
    """
    maps: list[LevelMap] = []
    for level, probability in zip(levels, probabilities, strict=True):
        current = coarse[level.grid].squeeze(1).clone()  # [B, grid, grid]
        if maps:
            above = maps[-1]
            finer = F.interpolate(above.probability[:, None], scale_factor=2, mode="bilinear")[:, 0]
            refined = above.refined.repeat_interleave(2, 1).repeat_interleave(2, 2)
            current = torch.where(refined, finer, current)
        else:
            refined = torch.zeros_like(current, dtype=torch.bool)
            refined.view(-1)[level.cell] = True
        current.view(-1)[level.cell] = probability.to(current.dtype)
        maps.append(LevelMap(current, refined))
    return maps
