"""The RoI pyramid: features of an RoI at the cells of grids 28, 56, 112, …, sampled only where a node lies.

Ke et al. 2022, §3.2. The dense [channels, 112, 112] tensors of the paper are never built: a node reads the
rows of the feature map under it. A feature map is kept as a table of rows, one row per position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FeatureMap", "TopDown", "roi_align_at_nodes"]


@dataclass(frozen=True)
class FeatureMap:
    """Feature maps of a batch as a table of rows.

    Attributes:
        rows: [batch · height · width, channels].
        height: rows of each map.
        width: columns of each map.
    """

    rows: Tensor
    height: int
    width: int

    @classmethod
    def of(cls, maps: Tensor) -> FeatureMap:
        """maps [B, C, H, W]; costs nothing where they are stored channels last."""
        _, channels, height, width = maps.shape
        return cls(maps.permute(0, 2, 3, 1).reshape(-1, channels), height, width)

    def at(self, batch: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """The features of cells: batch, y, x [n] → [n, C]."""
        return self.rows.index_select(0, (batch * self.height + y) * self.width + x)

    def neighbourhood(self, batch: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """The 3×3 cells around each cell, edge cells repeated: batch, y, x [n] → [n, 9 · C]."""
        offset = torch.arange(-1, 2, device=y.device)
        ys = (y[:, None] + offset).clamp(0, self.height - 1)  # [n, 3]
        xs = (x[:, None] + offset).clamp(0, self.width - 1)  # [n, 3]
        index = ((batch[:, None] * self.height + ys) * self.width)[:, :, None] + xs[:, None, :]  # [n, 3, 3]
        return self.rows.index_select(0, index.flatten()).reshape(len(y), 9 * self.rows.shape[1])


def roi_align_at_nodes(
    features: FeatureMap,
    batch: Tensor,
    boxes: Tensor,
    grid: int,
    y: Tensor,
    x: Tensor,
    sampling_ratio: int = 1,
) -> Tensor:
    """RoIAlign (aligned, as in torchvision and detectron2) at single cells of an RoI's grid.

    Args:
        features: the maps to read.
        batch: [n] which map of the batch each node reads.
        boxes: [n, 4] XYXY of each node's RoI, in cells of the feature map.
        grid: the RoI is divided in grid × grid cells.
        y, x: [n] the node's cell in that grid.
        sampling_ratio: sampling points a side in each cell.

    Returns:
        [n, C], equal to ``torchvision.ops.roi_align(..., grid, sampling_ratio=sampling_ratio, aligned=True)``
        at cell (y, x).
    """
    points = (torch.arange(sampling_ratio, device=y.device, dtype=boxes.dtype) + 0.5) / sampling_ratio
    cell = (boxes[:, 2:] - boxes[:, :2]) / grid  # [n, 2] as (width, height)
    py = boxes[:, 1, None] - 0.5 + (y[:, None] + points) * cell[:, 1, None]  # [n, s]
    px = boxes[:, 0, None] - 0.5 + (x[:, None] + points) * cell[:, 0, None]  # [n, s]
    result = features.rows.new_zeros(len(y), features.rows.shape[1])
    base = batch * features.height
    for i in range(sampling_ratio):
        y_low, y_high, y_part, y_in = _axis(py[:, i], features.height)
        for j in range(sampling_ratio):
            x_low, x_high, x_part, x_in = _axis(px[:, j], features.width)
            inside = (y_in & x_in).to(features.rows.dtype) / sampling_ratio**2
            for row, row_weight in ((y_low, 1 - y_part), (y_high, y_part)):
                for column, column_weight in ((x_low, 1 - x_part), (x_high, x_part)):
                    weight = (row_weight * column_weight).to(features.rows.dtype) * inside
                    taken = features.rows.index_select(0, (base + row) * features.width + column)
                    result = result + taken * weight[:, None]
    return result


def _axis(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bilinear taps on one axis: (low index, high index, weight of high, inside?), as RoIAlign clamps them."""
    inside = (position >= -1.0) & (position <= size)
    position = position.clamp(0, size - 1)
    low = position.floor()
    high = (low + 1).clamp(max=size - 1)
    return low.long(), high.long(), position - low, inside


class TopDown(nn.Module):
    """Fuses the backbone's strides 32, 16 and 8 into one stride-8 map, as an FPN does (Lin et al. 2017)."""

    def __init__(self, channels: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.norm = nn.ModuleList(nn.GroupNorm(8, width) for _ in channels)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        """maps at strides 8, 16, 32 → [B, width, H/8, W/8]."""
        fused: Tensor | None = None
        for i in reversed(range(len(maps))):
            x = self.lateral[i](maps[i])
            if fused is not None:
                x = x + F.interpolate(fused, size=x.shape[-2:], mode="nearest")
            fused = F.relu(self.norm[i](self.smooth[i](x)))
        assert fused is not None
        return fused
