"""ResNet (§2.4) and Swin (§2.5) as the release has them, from torchvision's parts.

Both turn an image [B, 3, H, W] with sides that are multiples of 32 into four maps at strides 4, 8, 16 and 32.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck
from torchvision.models.swin_transformer import ShiftedWindowAttention, SwinTransformer, SwinTransformerBlock
from torchvision.ops import FrozenBatchNorm2d, deform_conv2d

from transfiner_refine.official.architecture import Architecture

_WINDOW = 7  # cells a side of an attention window
_SHIFT = _WINDOW // 2
_HEAD_WIDTH = 32
_BLOCKED = -100.0  # logit between cells that only the cyclic shift made neighbours


class _DeformableConv(nn.Conv2d):
    """A 3×3 convolution whose nine taps move by learned offsets (dy, dx), not modulated (Dai et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1, bias=False)
        self.offset = nn.Conv2d(width, 18, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # torchvision's kernel has no half precision on every device, and offsets are positions
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            result: Tensor = deform_conv2d(x, self.offset(x), self.weight, self.bias, padding=1)
        return result


class ResNet(nn.Module):
    """Frozen normalisation; the stride sits in the first 1×1 of a stage, as in the original ResNet."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        inputs = architecture.width
        self.conv1 = nn.Conv2d(3, inputs, 7, 2, 3, bias=False)
        self.bn1: nn.Module = FrozenBatchNorm2d(inputs)
        self.stages = nn.ModuleDict()
        for i, (depth, outputs) in enumerate(zip(architecture.depths, architecture.channels, strict=True)):
            stride = 2 if i else 1
            shortcut: nn.Module | None = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), FrozenBatchNorm2d(outputs)
            )
            stage = nn.Sequential()
            for _ in range(depth):
                block = Bottleneck(inputs, outputs // 4, downsample=shortcut, norm_layer=FrozenBatchNorm2d)
                block.conv1.stride = (stride, stride)
                if architecture.deformable[i]:
                    block.conv2 = _DeformableConv(outputs // 4)
                stage.append(block)
                inputs, stride, shortcut = outputs, 1, None
            self.stages[f"res{i + 2}"] = stage

    def forward(self, image: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 3, 2, 1)
        maps = []
        for stage in self.stages.values():
            x = stage(x)
            maps.append(x)
        return maps


class _WindowAttention(ShiftedWindowAttention):  # type: ignore[misc]
    """torchvision's, through PyTorch's fused kernel; and windows shift on maps of a single window, too."""

    def define_relative_position_index(self) -> None:
        with torch.device("cpu"):  # not in the weights that fill a network on the meta device
            super().define_relative_position_index()

    def forward(self, x: Tensor) -> Tensor:
        """x [B, H, W, C] → the same shape."""
        batch, height, width, channels = x.shape
        # Padding follows the normalisation: padded cells enter the attention as the bias of qkv, unmasked.
        x = F.pad(x, (0, 0, 0, -width % _WINDOW, 0, -height % _WINDOW))
        bias = self.get_relative_position_bias()  # [1, heads, 49, 49]
        if self.shift_size[0]:
            x = x.roll((-_SHIFT, -_SHIFT), (1, 2))
            mask = _shift_mask(x.shape[1], x.shape[2], x.device)
            bias = (bias + mask[:, None]).repeat(batch, 1, 1, 1)  # [B · windows, heads, 49, 49]
        windows = _windows(x)
        qkv = self.qkv(windows).view(len(windows), -1, 3, self.num_heads, _HEAD_WIDTH)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        y = self.proj(attended.transpose(1, 2).flatten(2))
        rows, columns = x.shape[1] // _WINDOW, x.shape[2] // _WINDOW
        y = y.view(batch, rows, columns, _WINDOW, _WINDOW, channels).transpose(2, 3).reshape(x.shape)
        if self.shift_size[0]:
            y = y.roll((_SHIFT, _SHIFT), (1, 2))
        return y[:, :height, :width]


def _windows(x: Tensor) -> Tensor:
    """[B, H, W, C] with H, W multiples of 7 → [B · windows, 49, C], windows row by row."""
    cells = x.view(len(x), x.shape[1] // _WINDOW, _WINDOW, -1, _WINDOW, x.shape[3])
    return cells.transpose(2, 3).reshape(-1, _WINDOW * _WINDOW, x.shape[3])


def _shift_mask(height: int, width: int, device: torch.device) -> Tensor:
    """[windows, 49, 49] added to the logits of a shifted map: 0 within a region, -100 across regions.

    The padded map is cut at 7 and at 3 cells from its end on each axis, which gives nine regions.
    """
    row, column = (torch.arange(size, device=device) - size for size in (height, width))
    bands = [(index >= -_WINDOW).long() + (index >= -_SHIFT).long() for index in (row, column)]
    region = bands[0][:, None] * 3 + bands[1]
    cells = _windows(region[None, :, :, None]).squeeze(2)  # [windows, 49]
    return (cells[:, :, None] != cells[:, None, :]).float() * _BLOCKED


class Swin(nn.Module):
    """Swin transformer (Liu et al. 2021) with windows of 7."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels = architecture.channels
        heads = [width // _HEAD_WIDTH for width in channels]
        block = partial(SwinTransformerBlock, attn_layer=_WindowAttention)
        depths, window = list(architecture.depths), [_WINDOW, _WINDOW]
        self.features = SwinTransformer([4, 4], channels[0], depths, heads, window, block=block).features
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        x, maps = image, []
        for i, part in enumerate(self.features):  # embedding, stage, merging, stage, …
            x = part(x)  # [B, H, W, C]
            if i % 2:
                maps.append(self.norms[i // 2](x).permute(0, 3, 1, 2))  # merging reads the unnormalised map
        return maps
