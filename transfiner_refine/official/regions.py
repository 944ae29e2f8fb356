"""Features of the RoIs (§3): which map a box reads, and the table that all reads share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transfiner_refine.official.config import CONTEXT_GRID, NODE_GRIDS
from transfiner_refine.official.pyramid import FeaturePyramid, roi_align_on_levels
from transfiner_refine.official.quadtree import QuadtreeLevel

__all__ = ["Regions", "box_level", "feature_table"]

_FINEST, _COARSEST = 2, 5  # p2 … p5
_CANONICAL_LEVEL, _CANONICAL_SIDE = 4, 224  # a box of 224 pixels reads p4 (Lin et al. 2017)
_PLAIN_P2 = 4  # place of p2 without the semantic residual in the table


def box_level(boxes: Tensor) -> Tensor:
    """The pyramid level of each box: [N, 4] XYXY pixels → [N] int64 in 2..5."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = (_CANONICAL_LEVEL + torch.log2(side / _CANONICAL_SIDE + 1e-8)).floor()
    return level.clamp(_FINEST, _COARSEST).long()


def feature_table(maps: list[Tensor], semantic: Tensor) -> FeaturePyramid:
    """The maps as one table: p2 + S(p2), p3, p4, p5, and last p2 by itself.

    Args:
        maps: p2 … p5, [B, C, H/4, W/4] to [B, C, H/32, W/32].
        semantic: S(p2).
    """
    return FeaturePyramid.of([maps[0] + semantic, *maps[1:], maps[0]], [1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 4])


@dataclass(frozen=True)
class Regions:
    """The boxes of a batch and what they read.

    Attributes:
        table: from ``feature_table``.
        boxes: [N, 4] float32 XYXY, pixels of the resized images.
        image: [N] int64, the image of each box.
        level: [N] int64, its pyramid level k.
    """

    table: FeaturePyramid
    boxes: Tensor
    image: Tensor
    level: Tensor

    @classmethod
    def of(cls, table: FeaturePyramid, boxes: Tensor, image: Tensor) -> Regions:
        """Boxes with their levels."""
        return cls(table, boxes, image, box_level(boxes))

    def first(self, count: int) -> Regions:
        """The first ``count`` boxes."""
        return Regions(self.table, self.boxes[:count], self.image[:count], self.level[:count])

    def __len__(self) -> int:
        return len(self.boxes)

    def dense(self, grid: int, *, plain: bool = True) -> Tensor:
        """Features of every cell, from level k and plain p2: [N, C, grid, grid]."""
        cell = torch.arange(grid, device=self.boxes.device)
        count = len(self)
        box = torch.arange(count, device=self.boxes.device).repeat_interleave(grid * grid)
        y, x = cell.repeat_interleave(grid).repeat(count), cell.repeat(grid * count)
        index = self.level - _FINEST
        if plain:
            index = torch.where(index == 0, _PLAIN_P2, index)
        rows = self._read(index, box, grid, y, x)
        return rows.view(count, grid, grid, rows.shape[1]).permute(0, 3, 1, 2)

    def context(self) -> Tensor:
        """x14, what both heads and the context tokens read: [N, C, 14, 14]."""
        return self.dense(CONTEXT_GRID)

    def at(self, nodes: QuadtreeLevel) -> Tensor:
        """Features of nodes, each level one step finer than the one before, with the residual: [n, C]."""
        finer = 1 + NODE_GRIDS.index(nodes.grid)
        index = (self.level - finer).clamp(min=_FINEST) - _FINEST
        return self._read(index, nodes.instance, nodes.grid, nodes.y, nodes.x)

    def _read(self, index: Tensor, box: Tensor, grid: int, y: Tensor, x: Tensor) -> Tensor:
        return roi_align_on_levels(
            self.table,
            index.index_select(0, box),
            self.image.index_select(0, box),
            self.boxes.index_select(0, box),
            grid,
            y,
            x,
        )
