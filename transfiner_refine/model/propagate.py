"""Quadtree propagation: refined labels travel from the coarse level to the fine ones (Ke et al. 2022, §3.4).

The paper writes the nodes of the 28 level, upsamples, writes those of the 56 level, and so on. Here every cell has a
dense label, and it is what the nodes add to it that travels. The coarse mask stays where nothing was relabelled: such
cells take its value on each level, so nothing is blurred that was not refined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from transfiner_refine.model.quadtree import QuadtreeNodes

__all__ = ["LevelMap", "corrected_labels", "halvings", "propagate_corrections", "signed_depth"]

_DEPTH_GRID = 56
_SHARED_LEVELS = 3  # that every instance has; a result must not depend on which others its batch holds
_DEEPEST = 8  # of its cells, a seventh of the RoI's side; trust does not grow beyond


@dataclass(frozen=True)
class LevelMap:
    """The mask on one level after propagation.

    Attributes:
        probability: [B, grid, grid] foreground probability.
        refined: [B, grid, grid] bool, the cell is labelled anew.
    """

    probability: Tensor
    refined: Tensor


def halvings(maps: Tensor, last: int) -> dict[int, Tensor]:
    """Area averages of square maps [B, C, S, S] at sides S, S/2, … down to ``last``, by side."""
    averages = {maps.shape[-1]: maps}
    while (side := min(averages)) > last:
        averages[side // 2] = F.avg_pool2d(averages[side], 2)
    return averages


def propagate_corrections(
    coarse: dict[int, Tensor],
    labels: list[Tensor],
    relabelled: Tensor,
    trust: float = 0.0,
    deep_trust: float = 0.0,
    margin: float = math.inf,
) -> list[LevelMap]:
    """The mask on each level from labels of all its cells.

    Args:
        coarse: grid → [B, 1, grid, grid] coarse mask, from ``halvings``.
        labels: [B, grid, grid] foreground logits of each level, from ``corrected_labels``.
        relabelled: [B, 28, 28] bool, cells that are labelled anew; all others keep the coarse mask.
        trust: logit that the coarse mask adds to its own side.
        deep_trust: what it adds besides for every hundredth of the RoI's side between a cell and its outline.
        margin: a 28-level cell is labelled anew, too, where its new labels differ from the coarse mask by this much.

    Returns:
        the map of each level.
    """
    depth = 100 / _DEPTH_GRID * signed_depth(coarse[_DEPTH_GRID], _DEEPEST)
    anew, given = [], []
    for label in labels:
        mask = coarse[label.shape[-1]].squeeze(1)
        deep = F.interpolate(depth, mask.shape[-2:], mode="bilinear").squeeze(1)
        anew.append(torch.sigmoid(label + trust * (2 * mask - 1) + deep_trust * deep))
        given.append(mask)
    refined = relabelled | _contradicted(
        anew[:_SHARED_LEVELS][-1], coarse[max(coarse)], margin, relabelled.shape[-1]
    )
    maps = [LevelMap(torch.where(refined, anew[0], given[0]), refined)]
    for new, mask in zip(anew[1:], given[1:], strict=True):
        times = mask.shape[-1] // refined.shape[-1]
        finer = refined[:, :, None, :, None].expand(-1, -1, times, -1, times).flatten(3).flatten(1, 2)
        maps.append(LevelMap(torch.where(finer, new, mask), finer))
    return maps


def _contradicted(labels: Tensor, mask: Tensor, margin: float, grid: int) -> Tensor:
    """The cells in which labels differ somewhere from a finer mask: [B, g, g], [B, 1, S, S] → [B, grid, grid] bool."""
    side = mask.shape[-1]
    apart = (F.interpolate(labels[:, None], (side, side), mode="bilinear") - mask).abs()
    return F.max_pool2d(apart, side // grid).squeeze(1) >= margin


def signed_depth(mask: Tensor, most: int) -> Tensor:
    """How far inside a mask every cell lies, cut at 0.5: [B, 1, g, g] → [B, 1, g, g].

    Returns:
        chessboard distance in cells, 1 for a cell beside the outline and ``most`` at most; negative for cells outside.
    """
    background = (mask < 0.5).float()
    # both sides' complements grow, and what they have not reached yet lies deeper
    grown = torch.cat((background, 1 - background), 1)
    reached = grown
    for _ in range(most - 1):
        grown = F.max_pool2d(grown, 3, 1, 1)
        reached = reached + grown
    return reached[:, 1:] - reached[:, :1]


def corrected_labels(
    dense: dict[int, Tensor], levels: list[QuadtreeNodes], logits: list[Tensor]
) -> list[Tensor]:
    """Each level's dense labels with what the nodes of this level and of those above correct.

    A node's correction holds for its whole cell until a node below it says otherwise, and sharp dense labels stay
    sharp; to upsample the labels themselves would blur them wherever the tree ends early.

    Args:
        dense: grid → [B, grid, grid] foreground logit of every cell; levels beyond take the finest, upsampled.
        levels: the nodes of each level, coarse to fine.
        logits: [B, K] foreground logit of each level's nodes.

    Returns:
        [B, grid, grid] float32 foreground logit of each level's cells; gradients flow to the dense labels and, by way
        of the corrections, to every node's own logit.
    """
    corrected: list[Tensor] = []
    label = correction = torch.zeros(0)
    for level, logit in zip(levels, logits, strict=True):
        # [B, grid, grid]
        label = dense[level.grid].float() if level.grid in dense else _doubled(label)
        correction = _doubled(correction) if corrected else torch.zeros_like(label)
        own = logit.float() - label.flatten(1).gather(1, level.cell)
        inherited = correction.flatten(1)
        if level.valid is not None:
            own = torch.where(level.valid, own, inherited.gather(1, level.cell))
        correction = inherited.scatter(1, level.cell, own).view_as(label)
        corrected.append(label + correction)
    return corrected


def _doubled(maps: Tensor) -> Tensor:
    """[B, grid, grid] → [B, 2 · grid, 2 · grid], bilinearly."""
    return F.interpolate(maps[:, None], scale_factor=2, mode="bilinear")[:, 0]
