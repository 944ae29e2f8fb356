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

__all__ = ["NodeEncoder", "sinusoidal_position"]


def sinusoidal_position(y: Tensor, x: Tensor, grid: int, width: int) -> Tensor:
    """Sine and cosine of the cell's centre at ``width // 4`` frequencies a axis: y, x [n] → [n, width].

    Positions are relative to the RoI, so the cells of all levels share one frame.
    """
    count = width // 4
    # wavelengths from four RoI sides down to about one 224-level cell
    frequency = 2 * math.pi * torch.logspace(-2, 7, count, base=2.0, device=y.device)
    py = ((y.to(frequency.dtype) + 0.5) / grid)[:, None] * frequency
    px = ((x.to(frequency.dtype) + 0.5) / grid)[:, None] * frequency
    return torch.cat((py.sin(), py.cos(), px.sin(), px.cos()), 1)


class NodeEncoder(nn.Module):
    """Encodes the nodes of one level (or of all levels beyond 112, which share one encoder).

    Args:
        feature_channels: channels of cue 1.
        neighbour_channels: channels of one cell in cue 4, without the coarse mask.
        width: channels of a query.
    """

    def __init__(self, feature_channels: int, neighbour_channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.context = nn.Linear(9 * (neighbour_channels + 1), width // 2)
        self.fuse = nn.Linear(feature_channels + 1 + width // 2, width)
        self.position = nn.Linear(width, width)

    def forward(
        self, features: Tensor, coarse: Tensor, neighbours: Tensor, y: Tensor, x: Tensor, grid: int
    ) -> Tensor:
        """Queries from the cues.

        Args:
            features: [n, C] at the node's level.
            coarse: [n, 9] the coarse mask's 3×3 values, the cell's own in the middle.
            neighbours: [n, 9 · C'] the 3×3 features.
            y, x: [n] the node's cell.
            grid: cells a side on the node's level.

        Returns:
            [n, width].
        """
        coarse = coarse * 2 - 1
        context = F.relu(self.context(torch.cat((neighbours, coarse), 1)))
        query: Tensor = self.fuse(torch.cat((features, coarse[:, 4:5], context), 1))
        position = sinusoidal_position(y, x, grid, self.width).to(query.dtype)
        return query + self.position(position)
