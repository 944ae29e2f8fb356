"""The official network: features, coarse mask and incoherence (§4), transformer."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from transfiner_refine.official.architecture import Architecture
from transfiner_refine.official.backbones import ResNet, Swin
from transfiner_refine.official.features import ImageFeatures
from transfiner_refine.official.transformer import NodeTransformer

__all__ = ["OfficialNetwork"]


def _convolutions(*widths: int) -> nn.Sequential:
    """3×3 convolutions with a ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class CoarseHead(nn.Module):
    """Mask R-CNN's mask head.

    Args:
        width: channels of the features.
        classes: number of classes K.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.trunk = _convolutions(*(width,) * 5)
        self.upsample = nn.ConvTranspose2d(width, width, 2, 2)
        self.classify = nn.Conv2d(width, classes, 1)

    def hidden(self, features: Tensor) -> Tensor:
        """x14 [N, C, 14, 14] → h, the same shape; the incoherence head reads it too."""
        return F.relu(self.trunk(features))

    def forward(self, hidden: Tensor) -> Tensor:
        """Coarse logits of every class: [N, K, 28, 28]."""
        logits: Tensor = self.classify(F.relu(self.upsample(hidden)))
        return logits.float()


class IncoherenceHead(nn.Module):
    """The incoherence detector of the release: one 28×28 map a box, from which all levels are read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.trunk = _convolutions(width, width, width, width, half)
        self.upsample = nn.ConvTranspose2d(half, half, 2, 2)  # no ReLU after it, unlike the coarse head's
        self.classify = nn.Conv2d(half, 1, 1)

    def forward(self, features: Tensor, hidden: Tensor) -> Tensor:
        """x14 and h, [N, C, 14, 14] each → incoherence logits [N, 28, 28]."""
        logits: Tensor = self.classify(self.upsample(F.relu(self.trunk(features + hidden))))
        return logits.squeeze(1).float()


class OfficialNetwork(nn.Module):
    """Mask Transfiner as its authors released it."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        width = architecture.fpn_width
        self.backbone = ResNet(architecture) if architecture.backbone == "resnet" else Swin(architecture)
        self.fpn = FeaturePyramidNetwork(list(architecture.channels), width)
        # S: nodes read p2 + S(p2) wherever they read that level; all else reads plain p2
        self.semantic = _convolutions(*(width,) * 5)
        self.coarse = CoarseHead(width, architecture.classes)
        self.incoherence = IncoherenceHead(width)
        self.transformer = NodeTransformer(width, architecture.feedforward, architecture.layers)

    def features(self, image: Tensor) -> ImageFeatures:
        """One pass over a prepared image [1, 3, H, W]."""
        maps = list(self.fpn(OrderedDict(enumerate(self.backbone(image)))).values())
        semantic = self.semantic(maps[0])
        tables = [each[0].permute(1, 2, 0).contiguous() for each in (maps[0] + semantic, *maps[1:])]
        return ImageFeatures(maps, semantic, tables)
