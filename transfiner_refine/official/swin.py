"""Swin transformer as the release builds it (Liu et al. 2021; §2.5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfiner_refine.official.config import Architecture

__all__ = ["HEAD_WIDTH", "WINDOW", "Swin"]

WINDOW = 7  # cells a side of an attention window
HEAD_WIDTH = 32  # channels of an attention head
_SHIFT = WINDOW // 2
_BLOCKED = -100.0  # logit between cells that only the cyclic shift made neighbours


def relative_position_index(device: torch.device | None = None) -> Tensor:
    """[49, 49] int64: row of the bias table for query cell a and key cell b of a window."""
    cell = torch.arange(WINDOW, device=device)
    y, x = (axis.flatten() for axis in torch.meshgrid(cell, cell, indexing="ij"))
    dy, dx = y[:, None] - y + WINDOW - 1, x[:, None] - x + WINDOW - 1
    return dy * (2 * WINDOW - 1) + dx


def _windows(x: Tensor) -> Tensor:
    """[B, H, W, C] with H, W multiples of 7 → [B · windows, 49, C], windows row by row."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW * WINDOW, channels)


def _unwindow(windows: Tensor, height: int, width: int) -> Tensor:
    """The inverse of ``_windows``: → [B, height, width, C]."""
    channels = windows.shape[-1]
    x = windows.view(-1, height // WINDOW, width // WINDOW, WINDOW, WINDOW, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


def _shift_mask(height: int, width: int, device: torch.device) -> Tensor:
    """[windows, 49, 49] added to the logits of a shifted map: 0 within a region, -100 across regions.

    The padded map is cut at 7 and at 3 cells from its end on each axis, which gives nine regions.
    """

    def bands(size: int) -> Tensor:
        index = torch.arange(size, device=device)
        return (index >= size - WINDOW).long() + (index >= size - _SHIFT).long()

    region = bands(height)[:, None] * 3 + bands(width)
    cells = _windows(region[None, :, :, None]).squeeze(2)  # [windows, 49]
    return (cells[:, :, None] != cells[:, None, :]).float() * _BLOCKED


class _WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias per relative position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, self.heads))

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """windows [B · windows, 49, C], mask [windows, 49, 49] or None → [B · windows, 49, C]."""
        count, cells, width = windows.shape
        q, k, v = self.qkv(windows).view(count, cells, 3, self.heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        index = relative_position_index(windows.device).flatten()
        bias = self.bias_table.index_select(0, index).view(cells, cells, self.heads).permute(2, 0, 1)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(count // len(mask), 1, 1, 1)  # [B · windows, heads, 49, 49]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        result: Tensor = self.project(attended.transpose(1, 2).reshape(count, cells, width))
        return result


class _Block(nn.Module):
    """Pre-norm transformer block over windows; every other block shifts the windows by three cells."""

    def __init__(self, width: int, *, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _WindowAttention(width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, H, W, C] → the same shape."""
        _, height, width, _ = x.shape
        # Padding follows the normalisation: padded cells enter the attention as the bias of qkv, unmasked.
        y = F.pad(self.norm1(x), (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        padded = (y.shape[1], y.shape[2])
        mask = None
        if self.shifted:
            y = y.roll((-_SHIFT, -_SHIFT), (1, 2))
            mask = _shift_mask(*padded, x.device)
        y = _unwindow(self.attention(_windows(y), mask), *padded)
        if self.shifted:
            y = y.roll((_SHIFT, _SHIFT), (1, 2))
        x = x + y[:, :height, :width]
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class _Merge(nn.Module):
    """Halves a map: four neighbouring cells become one of twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, H, W, C] → [B, ⌈H/2⌉, ⌈W/2⌉, 2C]."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        quarters = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        merged: Tensor = self.reduce(self.norm(torch.cat(quarters, 3)))
        return merged


class Swin(nn.Module):
    """Image [B, 3, H, W], sides multiples of 4 → four maps at strides 4, 8, 16 and 32."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels = architecture.channels
        self.embed = nn.Conv2d(3, channels[0], 4, 4)
        self.embed_norm = nn.LayerNorm(channels[0])
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Block(width, shifted=i % 2 == 1) for i in range(depth)))
            for depth, width in zip(architecture.depths, channels, strict=True)
        )
        self.merges = nn.ModuleList(_Merge(width) for width in channels[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.embed_norm(self.embed(image).permute(0, 2, 3, 1))  # [B, H/4, W/4, C]
        maps = []
        for i, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            x = stage(x)
            maps.append(norm(x).permute(0, 3, 1, 2))  # merging goes on from the unnormalised map
            if i < len(self.merges):
                x = self.merges[i](x)
        return maps

    def fuse(self) -> None:
        """Nothing to fold: there is no batch normalisation."""
