"""Quadtree propagation: refined labels travel from the coarse level to the fine ones (Ke et al. 2022, §3.4).

Write the nodes of the 28 level, upsample, write those of the 56 level, and so on. Where no node lies the coarse
mask stays: cells outside every node take its value on each level anew, so nothing is blurred that was not refined.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from transfiner_refine.model.quadtree import QuadtreeLevel

__all__ = ["LevelMap", "halvings", "propagate"]


@dataclass(frozen=True)
class LevelMap:
    """The mask on one level after propagation.

    Attributes:
        probability: [B, grid, grid] foreground probability.
        refined: [B, grid, grid] bool, the cell lies in a root of the quadtree.
    """

    probability: Tensor
    refined: Tensor


def halvings(maps: Tensor, last: int) -> dict[int, Tensor]:
    """Area averages of square maps [B, C, S, S] at sides S, S/2, … down to ``last``, by side."""
    averages = {maps.shape[-1]: maps}
    while (side := min(averages)) > last:
        averages[side // 2] = F.avg_pool2d(averages[side], 2)
    return averages


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
