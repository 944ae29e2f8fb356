"""ResNet-50/101 as detectron2 builds them, with and without deformable convolutions (§2.4)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import deform_conv2d

from transfiner_refine.official.config import Architecture

__all__ = ["ResNet"]

_TAPS = 9  # of a 3×3 kernel; each has an offset (dy, dx)


class _DeformableConv(nn.Conv2d):
    """A 3×3 convolution whose taps move by learned offsets, not modulated (Dai et al. 2017)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        self.offset = nn.Conv2d(inputs, 2 * _TAPS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # torchvision's kernel has no half precision on every device, and offsets are positions
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            result: Tensor = deform_conv2d(x, self.offset(x), self.weight, self.bias, padding=1)
        return result


class _ConvNorm(nn.Module):
    """Convolution and batch normalisation with frozen statistics, without activation."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm: nn.Module = nn.BatchNorm2d(conv.out_channels)  # eps 1e-5, as in the release

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y

    def fuse(self) -> None:
        """Folds the normalisation into the convolution; for inference only."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval()), nn.Identity()


class _Bottleneck(nn.Module):
    """1×1 → 3×3 → 1×1 with a shortcut; the stride sits in the first 1×1, as in the original ResNet."""

    def __init__(self, inputs: int, hidden: int, stride: int, *, deformable: bool) -> None:
        super().__init__()
        outputs = 4 * hidden
        self.reduce = _ConvNorm(nn.Conv2d(inputs, hidden, 1, stride, bias=False))
        spatial = (
            _DeformableConv(hidden, hidden)
            if deformable
            else nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        )
        self.spatial = _ConvNorm(spatial)
        self.expand = _ConvNorm(nn.Conv2d(hidden, outputs, 1, bias=False))
        self.shortcut = (
            _ConvNorm(nn.Conv2d(inputs, outputs, 1, stride, bias=False)) if inputs != outputs else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.reduce(x))
        y = self.expand(F.relu(self.spatial(y)))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """Image [B, 3, H, W] → four maps at strides 4, 8, 16 and 32."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.width
        self.stem = _ConvNorm(nn.Conv2d(3, width, 7, 2, 3, bias=False))
        self.stages = nn.ModuleList()
        inputs = width
        for i, (depth, outputs, deformable) in enumerate(
            zip(architecture.depths, architecture.channels, architecture.deformable, strict=True)
        ):
            blocks = []
            for block in range(depth):
                stride = 2 if i > 0 and block == 0 else 1
                blocks.append(_Bottleneck(inputs, outputs // 4, stride, deformable=deformable))
                inputs = outputs
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.stem(image)), 3, 2, 1)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def _parts(self) -> Iterator[_ConvNorm]:
        return (module for module in self.modules() if isinstance(module, _ConvNorm))

    def fuse(self) -> None:
        """Folds every normalisation into its convolution; for inference only."""
        for part in list(self._parts()):
            part.fuse()
