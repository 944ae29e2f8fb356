"""The RoI pyramid: features of an RoI at the cells of grids 28, 56, 112, …, read only where a node lies.

Ke et al. 2022, §3.2, without the paper's dense [channels, 112, 112] tensors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FeatureMap(NamedTuple):
    """Square feature maps of a batch, ``grid`` cells a side, as a table of rows [batch · grid · grid, channels]."""

    rows: Tensor
    grid: int

    @classmethod
    def of(cls, maps: Tensor) -> FeatureMap:
        """maps [B, C, grid, grid]; costs nothing where they are stored channels last."""
        return cls(maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]), maps.shape[-1])

    def read(self, index: Tensor) -> Tensor:
        """Rows at ``index`` [B, ...] int64 of the table → [B, ..., C]."""
        return self.rows.index_select(0, index.flatten()).view(*index.shape, self.rows.shape[1])

    def sample(self, y: Tensor, x: Tensor) -> Tensor:
        """The features under cells y, x [B, K] int64 of the grid twice as fine, bilinearly at their centres: [B, K, C].

        Equal to ``torchvision.ops.roi_align`` of the whole map with one sample a cell.
        """
        (y_low, y_high, y_weight), (x_low, x_high, x_weight) = _taps(y, self.grid), _taps(x, self.grid)
        first = first_rows(y, self.grid)
        low, high = y_low * self.grid + first, y_high * self.grid + first
        index = torch.stack((low + x_low, low + x_high, high + x_low, high + x_high), 2)  # [B, K, 4]
        top, bottom = torch.stack((x_weight, 1 - x_weight), 2), torch.stack((y_weight, 1 - y_weight), 2)
        weight = (bottom[:, :, :, None] * top[:, :, None, :]).flatten(2)
        taken = self.read(index)
        return (taken * weight[..., None].to(taken.dtype)).sum(2)


def first_rows(cells: Tensor, grid: int) -> Tensor:
    """[B, 1] int64: the first row of each instance in a table; ``cells`` [B, K] says how many there are, and where."""
    return torch.arange(cells.shape[0], device=cells.device)[:, None] * (grid * grid)


def _taps(cell: Tensor, grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: the two coarse cells between which a fine cell's centre lies, and the weight of the first."""
    low = (cell - 1).div(2, rounding_mode="floor")
    return low.clamp(min=0), (low + 1).clamp(max=grid - 1), 0.25 + 0.5 * cell.remainder(2)


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
