"""The node encoder: one query per quadtree node from four cues (Ke et al. 2022, §3.3 and fig. 5).

(1) the feature at the node's level, (2) the coarse mask's value, (3) the relative position in the RoI,
(4) the 3×3 neighbourhood, squeezed by a fully connected layer. Cues 1, 2 and 4 are fused by a fully connected
layer; the position is added.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NodeEncoder", "axis_position"]


def axis_position(grid: int, width: int, like: Tensor) -> Tensor:
    """Sine and cosine of the centres of an axis' cells at ``width // 4`` frequencies: [grid, width // 2].

    Positions are relative to the RoI, so the cells of all levels share one frame. Device and type are of ``like``.
    """
    # wavelengths from four RoI sides down to about one 224-level cell; torch.logspace has no MPS kernel
    frequency = 2 * math.pi * 2.0 ** torch.linspace(-2, 7, width // 4, device=like.device)
    centre = (torch.arange(grid, device=like.device) + 0.5) / grid
    angle = centre[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), 1).to(like.dtype)


class NodeEncoder(nn.Module):
    """Encodes the nodes of one level (or of all levels beyond 112, which share one encoder).

    Args:
        feature_channels: channels of cue 1.
        neighbour_channels: channels of one cell in cue 4, without the coarse mask.
        width: channels of a query.
    """

    def __init__(self, feature_channels: int, neighbour_channels: int, width: int) -> None:
        super().__init__()
        self.context = nn.Linear(9 * (neighbour_channels + 1), width // 2)
        self.fuse = nn.Linear(feature_channels + 1 + width // 2, width)
        self.position = nn.Linear(width, width)

    def forward(
        self, features: Tensor, coarse: Tensor, neighbours: Tensor, y: Tensor, x: Tensor, grid: int
    ) -> Tensor:
        """Queries from the cues.

        Args:
            features: [B, K, C] at the node's level.
            coarse: [B, K, 9] the coarse mask's 3×3 values, the cell's own in the middle.
            neighbours: [B, K, 9 · C'] the 3×3 features.
            y, x: [B, K] the node's cell.
            grid: cells a side on the node's level.

        Returns:
            [B, K, width].
        """
        coarse = coarse * 2 - 1
        context = F.relu(self.context(torch.cat((neighbours, coarse), 2)))
        query: Tensor = self.fuse(torch.cat((features, coarse[:, :, 4:5], context), 2))
        return query + self._position(y, x, grid)

    def _position(self, y: Tensor, x: Tensor, grid: int) -> Tensor:
        """``position`` of the encoded centres; linear, so row and column may be looked up apart: [B, K, width]."""
        weight = self.position.weight
        axis = axis_position(grid, weight.shape[1], weight)
        rows = F.linear(axis, weight[:, : axis.shape[1]], self.position.bias)
        columns = F.linear(axis, weight[:, axis.shape[1] :])
        both = rows.index_select(0, y.flatten()) + columns.index_select(0, x.flatten())
        return both.view(*y.shape, -1)
