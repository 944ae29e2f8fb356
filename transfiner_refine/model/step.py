"""The refine step: an RoI's pixels and coarse mask in, its relabelled mask out, in one program of static shapes.

``torch.export`` takes it whole (``refine/export.py``), so PyTorch and onnxruntime run the same program.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from transfiner_refine.model.config import ATTENTION_GRIDS
from transfiner_refine.model.network import MaskTransfiner
from transfiner_refine.model.quadtree import BudgetSelector

__all__ = ["RefineStep", "StepOutput"]


class StepOutput(NamedTuple):
    """What a step yields for a batch of B RoIs."""

    probability: Tensor  # [B, G, G] float32, foreground probability of each cell of the finest grid
    relabelled: Tensor  # [B, 28, 28] bool, cells that were relabelled; all others keep the coarse mask
    cells: Tensor  # [B, N] int64, row · grid + column of the nodes, level after level, each with its budget of places
    valid: Tensor  # [B, N] bool, the places that hold a node. N is 0 for a step without nodes


class RefineStep(nn.Module):
    """The step of one size class.

    Args:
        network: in evaluation mode.
        depth: levels of the quadtree; 3 has 112 cells a side at the end, 4 has 224, 5 has 448.
        nodes: build the quadtree. Without it the dense labels count, which end at 224 cells.
    """

    def __init__(self, network: MaskTransfiner, depth: int, *, nodes: bool) -> None:
        super().__init__()
        self.network, self.depth = network, depth
        self.selector = BudgetSelector(network.config) if nodes else None

    @property
    def side(self) -> int:
        """Side of the resized RoI, pixels."""
        config = self.network.config
        return config.crop_side if self.depth == len(ATTENTION_GRIDS) else config.detail_side

    def forward(self, pixels: Tensor, coarse: Tensor) -> StepOutput:
        """pixels [B, 3, S, S] uint8 RGB, coarse [B, 1, S, S] float32 in [0, 1]; S = ``side``."""
        output = self.network(pixels.float(), coarse, self.selector, self.depth)
        maps = self.network.maps(output, coarse, self.network.config)
        if output.levels:
            cells = torch.cat([level.cell for level in output.levels], 1)
            valid = torch.cat([level.exists() for level in output.levels], 1)
        else:
            cells = torch.zeros_like(pixels[:, 0, 0, :0], dtype=torch.int64)
            valid = cells > 0
        return StepOutput(maps[-1].probability, maps[0].relabelled, cells, valid)
