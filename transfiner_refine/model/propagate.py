"""Quadtree propagation: refined labels travel from the coarse level to the fine ones (Ke et al. 2022, §3.4).

The paper's way (``propagate``): write the nodes of the 28 level, upsample, write those of the 56 level, and so on.
Where cells have a dense label (``propagate_corrections``) it is what the nodes add to it that travels. Either way the
coarse mask stays where nothing was labelled anew: such cells take its value on each level, so nothing is blurred that
was not refined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from transfiner_refine.model.quadtree import QuadtreeLevel

__all__ = ["LevelMap", "corrected_labels", "halvings", "propagate", "propagate_corrections", "signed_depth"]

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


def propagate_corrections(
    coarse: dict[int, Tensor],
    dense: dict[int, Tensor],
    relabelled: Tensor,
    levels: list[QuadtreeLevel],
    logits: list[Tensor],
    trust: float = 0.0,
    deep_trust: float = 0.0,
    margin: float = math.inf,
) -> list[LevelMap]:
    """Adds to each level's dense labels what the nodes of this level and of those above correct.

    A node's correction holds for its whole cell until a node below it says otherwise, and sharp dense labels stay
    sharp; to upsample the labels themselves, as ``propagate`` does, would blur them wherever the tree ends early.

    Args:
        coarse: grid → [B, 1, grid, grid] coarse mask, from ``halvings``.
        dense: grid → [B, grid, grid] foreground logit of every cell; levels beyond take the finest, upsampled.
        relabelled: [B, 28, 28] bool, cells that are labelled anew; all others keep the coarse mask.
        levels: the nodes of each level, coarse to fine.
        logits: [n] foreground logit of each level's nodes.
        trust: logit that the coarse mask adds to its own side.
        deep_trust: what it adds besides for every hundredth of the RoI's side between a cell and its outline.
        margin: a 28-level cell is labelled anew, too, where its new labels differ from the coarse mask by this much.

    Returns:
        the map of each level.
    """
    maps: list[LevelMap] = []
    depth = 100 / _DEPTH_GRID * signed_depth(coarse[_DEPTH_GRID], _DEEPEST)
    anew, given = [], []
    for label in corrected_labels(dense, levels, logits):
        mask = coarse[label.shape[-1]].squeeze(1)
        deep = F.interpolate(depth, mask.shape[-2:], mode="bilinear").squeeze(1)
        anew.append(torch.sigmoid(label + trust * (2 * mask - 1) + deep_trust * deep))
        given.append(mask)
    refined = relabelled | _contradicted(
        anew[:_SHARED_LEVELS][-1], coarse[max(coarse)], margin, relabelled.shape[-1]
    )
    for new, mask in zip(anew, given, strict=True):
        if maps:
            refined = refined.repeat_interleave(2, 1).repeat_interleave(2, 2)
        maps.append(LevelMap(torch.where(refined, new, mask), refined))
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
    inside = (mask >= 0.5).float()
    outside = 1 - inside
    depth = inside - outside
    for _ in range(most - 1):
        inside, outside = (-F.max_pool2d(-side, 3, 1, 1) for side in (inside, outside))
        depth = depth + inside - outside
    return depth


def corrected_labels(
    dense: dict[int, Tensor], levels: list[QuadtreeLevel], logits: list[Tensor]
) -> list[Tensor]:
    """What ``propagate_corrections`` makes of every cell, were all labelled anew; arguments as there.

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
        own = logit.float() - label.flatten().index_select(0, level.cell)
        correction = correction.flatten().index_copy(0, level.cell, own).view_as(label)
        corrected.append(label + correction)
    return corrected


def _doubled(maps: Tensor) -> Tensor:
    """[B, grid, grid] → [B, 2 · grid, 2 · grid], bilinearly."""
    return F.interpolate(maps[:, None], scale_factor=2, mode="bilinear")[:, 0]
