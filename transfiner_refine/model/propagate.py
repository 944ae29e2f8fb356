"""Quadtree propagation: refined labels travel from the coarse level to the fine ones (Ke et al. 2022, §3.4).

The paper writes the nodes of the 28 level, upsamples, writes those of the 56 level, and so on. Here every cell has a
dense label, and what the nodes add to it travels. Cells that are not relabelled keep the coarse mask's value on every
level, so nothing is blurred that was not refined.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from transfiner_refine.model.quadtree import QuadtreeNodes

_DEPTH_GRID = 56
_SHARED_LEVELS = 3  # that every instance has; a result must not depend on which others its batch holds
_DEEPEST = 8  # of its cells, a seventh of the RoI's side; trust does not grow beyond


class LevelMap(NamedTuple):
    """The mask on one level: foreground probability and relabelled cells (bool), [B, grid, grid] each."""

    probability: Tensor
    relabelled: Tensor


def area_pyramid(maps: Tensor, last: int) -> dict[int, Tensor]:
    """Area averages of square maps [B, C, S, S] at sides S, S/2, … down to ``last``, by side."""
    averages = {maps.shape[-1]: maps}
    while (side := min(averages)) > last:
        averages[side // 2] = F.avg_pool2d(averages[side], 2)
    return averages


def corrected_labels(
    dense: dict[int, Tensor], levels: list[QuadtreeNodes], logits: list[Tensor]
) -> list[Tensor]:
    """Each level's dense labels with what the nodes of this level and of those above correct.

    A node's correction holds for its whole cell until a node below it overrules it. Sharp dense labels stay sharp; to
    upsample the labels themselves would blur them wherever the tree ends early.

    ``dense`` has the foreground logit of every cell [B, grid, grid] by grid; levels beyond take the finest, upsampled.
    ``logits`` are those of each level's nodes [B, K]. Returns float32 logits [B, grid, grid] of each level; gradients
    flow to the dense labels and, by way of the corrections, to every node's own logit.
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


def propagate_corrections(
    coarse: dict[int, Tensor],
    labels: list[Tensor],
    relabelled: Tensor,
    trust: float = 0.0,
    deep_trust: float = 0.0,
    margin: float = math.inf,
) -> list[LevelMap]:
    """The mask on each level from labels of all its cells, the logits [B, grid, grid] of ``corrected_labels``.

    Cells that are not ``relabelled`` [B, 28, 28] keep the coarse mask [B, 1, grid, grid], by grid; the rest is as in
    ``RefineSettings``, ``margin`` its ``relabel_margin``.
    """
    depth = 100 / _DEPTH_GRID * signed_depth(coarse[_DEPTH_GRID], _DEEPEST)
    new, given = [], []
    for label in labels:
        mask = coarse[label.shape[-1]].squeeze(1)
        deep = F.interpolate(depth, mask.shape[-2:], mode="bilinear").squeeze(1)
        new.append(torch.sigmoid(label + trust * (2 * mask - 1) + deep_trust * deep))
        given.append(mask)
    grid, side = relabelled.shape[-1], max(coarse)
    shared = F.interpolate(new[:_SHARED_LEVELS][-1][:, None], (side, side), mode="bilinear")
    apart = (shared - coarse[side]).abs()
    relabelled = relabelled | (F.max_pool2d(apart, side // grid).squeeze(1) >= margin)
    maps = []
    for label, mask in zip(new, given, strict=True):
        cells, times = relabelled, mask.shape[-1] // grid
        if times > 1:
            cells = relabelled[:, :, None, :, None].expand(-1, -1, times, -1, times).flatten(3).flatten(1, 2)
        maps.append(LevelMap(torch.where(cells, label, mask), cells))
    return maps


def signed_depth(mask: Tensor, most: int) -> Tensor:
    """How far inside a mask, cut at 0.5, every cell lies: [B, 1, g, g] → [B, 1, g, g].

    Chessboard distance in cells, 1 for a cell beside the outline and ``most`` at most; negative for cells outside.
    """
    background = (mask < 0.5).float()
    # both sides' complements grow, and what they have not reached yet lies deeper
    reached = grown = torch.cat((background, 1 - background), 1)
    for _ in range(most - 1):
        grown = F.max_pool2d(grown, 3, 1, 1)
        reached = reached + grown
    return reached[:, 1:] - reached[:, :1]
