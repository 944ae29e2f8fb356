"""The RoI pyramid: features of an RoI at the cells of grids 28, 56, 112, …, sampled only where a node lies.

Ke et al. 2022, §3.2. The dense [channels, 112, 112] tensors of the paper are never built: a node reads the
rows of the feature map under it. A feature map is kept as a table of rows, one row per position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FeatureMap", "TopDown"]


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

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """The features at cells of each instance: y, x [B, ...] int64 → [B, ..., C]."""
        instances = torch.arange(y.shape[0], device=y.device) * (self.height * self.width)
        index = y * self.width + x + instances.view(-1, *[1] * (y.dim() - 1))
        return self.rows.index_select(0, index.flatten()).view(*index.shape, self.rows.shape[1])

    def neighbourhood(self, y: Tensor, x: Tensor) -> Tensor:
        """The 3×3 cells around each cell, edge cells repeated: y, x [B, K] → [B, K, 9, C]."""
        offset = torch.arange(-1, 2, device=y.device)
        ys = (y[:, :, None] + offset).clamp(0, self.height - 1)[:, :, :, None].expand(-1, -1, -1, 3)
        xs = (x[:, :, None] + offset).clamp(0, self.width - 1)[:, :, None, :].expand(-1, -1, 3, -1)
        return self.read(ys.flatten(2), xs.flatten(2))

    def sample(self, grid: int, y: Tensor, x: Tensor) -> Tensor:
        """The features at cells of a grid × grid division of the map, bilinearly at the cells' centres.

        Args:
            grid: cells a side; the map's own grid or a multiple of it.
            y, x: [B, K] int64.

        Returns:
            [B, K, C], equal to ``torchvision.ops.roi_align`` of the whole map with one sample a cell.
        """
        if grid == self.height:
            return self.read(y, x)
        sides = [_taps(v, size, grid) for v, size in ((y, self.height), (x, self.width))]
        (y_taps, y_weight), (x_taps, x_weight) = sides  # [B, K, 2] each
        taken = self.read(
            y_taps[:, :, :, None].expand(-1, -1, -1, 2).flatten(2),
            x_taps[:, :, None, :].expand(-1, -1, 2, -1).flatten(2),
        )
        weight = (y_weight[:, :, :, None] * x_weight[:, :, None, :]).flatten(2)  # [B, K, 4]
        return (taken * weight[..., None].to(taken.dtype)).sum(2)


def _taps(cell: Tensor, size: int, grid: int) -> tuple[Tensor, Tensor]:
    """The two places on one axis between which a cell's centre lies, and their weights: [B, K, 2] each."""
    position = ((cell + 0.5) * (size / grid) - 0.5).clamp(0, size - 1)
    low = position.floor()
    part = position - low
    taps = torch.stack((low, (low + 1).clamp(max=size - 1)), 2)
    return taps.long(), torch.stack((1 - part, part), 2)


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
