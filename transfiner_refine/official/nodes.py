"""Which cells become nodes of the quadtree (§4): thresholds on one incoherence map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from transfiner_refine.official.config import NODE_GRIDS, NODE_THRESHOLDS
from transfiner_refine.official.quadtree import QuadtreeLevel, roots_of

__all__ = ["select_nodes"]


def select_nodes(
    incoherence: Tensor,
    *,
    always: Tensor | None = None,
    dilate_finest: bool = False,
    thresholds: Sequence[float] = NODE_THRESHOLDS,
) -> list[QuadtreeLevel]:
    """The nodes of all levels.

    Args:
        incoherence: [n, 28, 28] probabilities u; finer levels read them by nearest neighbour.
        always: [n, 28, 28] bool, cells that are nodes on every level whatever u says.
        dilate_finest: the demo's: a 112-level cell is a node too if one of its eight neighbours is.
        thresholds: least u on each level.

    Returns:
        the levels, each ordered by instance, row, column. The thresholds rise, so a node's parent is a node,
        but for the nodes that the dilation adds (parent -1).
    """
    levels: list[QuadtreeLevel] = []
    for grid, threshold in zip(NODE_GRIDS, thresholds, strict=True):
        selected = incoherence >= threshold
        if always is not None:
            selected = selected | always
        repeat = grid // incoherence.shape[-1]
        selected = selected.repeat_interleave(repeat, 1).repeat_interleave(repeat, 2)
        if dilate_finest and grid == NODE_GRIDS[-1]:
            selected = F.max_pool2d(selected[:, None].float(), 3, 1, 1)[:, 0] > 0
        level = roots_of(selected)
        levels.append(_below(levels[-1], level, len(incoherence)) if levels else level)
    return levels


def _below(above: QuadtreeLevel, level: QuadtreeLevel, instances: int) -> QuadtreeLevel:
    """``level`` with each node's parent looked up in the level above."""
    places = torch.full((instances * above.grid**2,), -1, dtype=torch.long, device=level.y.device)
    places[above.cell] = torch.arange(len(above), device=level.y.device)
    parent = (level.instance * above.grid + level.y // 2) * above.grid + level.x // 2
    return replace(level, parent=places.index_select(0, parent))
