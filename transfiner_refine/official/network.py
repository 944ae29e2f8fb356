"""The official network: features, coarse mask and incoherence (§4), transformer and decoder (§5)."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from transfiner_refine.official.architecture import Architecture
from transfiner_refine.official.backbones import ResNet, Swin
from transfiner_refine.official.features import CONTEXT_GRID, ImageFeatures

_HEADS = 4


def _convolutions(*widths: int) -> nn.Sequential:
    """3×3 convolutions with a ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class CoarseHead(nn.Module):
    """Mask R-CNN's mask head."""

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


class _Layer(nn.Module):
    """Post-norm transformer layer; the position joins queries and keys anew in every layer, never the values."""

    def __init__(self, width: int, feedforward: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.project = (nn.Linear(width, width) for _ in range(4))
        self.widen, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, position: Tensor, first: int) -> Tensor:
        """x, position [t, width] → [t - first, width], the tokens from ``first`` on."""
        where = x + position
        q, k, v = (  # [1, heads, t, channels of a head]
            each.view(1, len(each), _HEADS, -1).transpose(1, 2)
            for each in (self.q(where[first:]), self.k(where), self.v(x))
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[0]
        x = self.norm1(x[first:] + self.project(attended))
        y: Tensor = self.norm2(x + self.narrow(F.relu(self.widen(x))))
        return y


class _PackedLinear(nn.Module):
    """A linear layer through oneDNN."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = (each.detach().to_mkldnn() for each in (linear.weight, linear.bias))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to_mkldnn(), self.weight, self.bias).to_dense()


class NodeTransformer(nn.Module):
    """From the tokens of one box to its nodes' labels."""

    def __init__(self, width: int, feedforward: int, layers: int) -> None:
        super().__init__()
        self.fuse = nn.Linear(width + 1, width)  # all that the release has of the paper's node encoder
        self.layers = nn.ModuleList(_Layer(width, feedforward) for _ in range(layers))
        self.decode = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, tokens: Tensor, position: Tensor, first: int = CONTEXT_GRID**2) -> Tensor:
        """Foreground logits [t - first] of the tokens from ``first`` on; what the context says is not computed."""
        if len(tokens) == first:
            return position.new_zeros(0)
        logits: Tensor = self.decode(self.encode(self.fuse(tokens), position, first))
        return logits.squeeze(1).float()

    def encode(self, x: Tensor, position: Tensor, first: int) -> Tensor:
        """The layers: [t, C] → [t - first, C]."""
        for layer in self.layers[:-1]:
            x = layer(x, position, 0)
        encoded: Tensor = self.layers[-1](x, position, first)
        return encoded

    def pack(self) -> None:
        """Makes the layers' linear maps run through oneDNN; for inference in float32 on a CPU, once on the CPU.

        PyTorch multiplies float32 matrices with MKL, which reaches less than half the speed on AMD's processors.
        """
        if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            for layer in self.layers:
                for name, linear in list(layer.named_children()):
                    if isinstance(linear, nn.Linear):
                        setattr(layer, name, _PackedLinear(linear))


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
