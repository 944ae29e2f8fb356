"""The two heads on the 14×14 features: the coarse mask, and where it is incoherent (§4)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CoarseHead", "IncoherenceHead"]


def _trunk(widths: tuple[int, ...]) -> nn.ModuleList:
    return nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))


class CoarseHead(nn.Module):
    """Mask R-CNN's mask head.

    Args:
        width: channels of the features.
        classes: number of classes K.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.trunk = _trunk((width,) * 5)
        self.upsample = nn.ConvTranspose2d(width, width, 2, 2)
        self.classify = nn.Conv2d(width, classes, 1)

    def hidden(self, features: Tensor) -> Tensor:
        """x14 [N, C, 14, 14] → h, the same shape; the incoherence head reads it too."""
        for convolution in self.trunk:
            features = F.relu(convolution(features))
        return features

    def logits(self, hidden: Tensor, classes: Tensor) -> Tensor:
        """Coarse logits of each box's own class ([N] int64): [N, 28, 28]."""
        weight = self.classify.weight.flatten(1).index_select(0, classes)  # [N, C]
        assert self.classify.bias is not None
        upsampled = F.relu(self.upsample(hidden))
        logits = torch.einsum("ncyx,nc->nyx", upsampled, weight.to(upsampled.dtype))
        return logits.float() + self.classify.bias.index_select(0, classes)[:, None, None]

    def all_logits(self, hidden: Tensor) -> Tensor:
        """Coarse logits of every class: [N, K, 28, 28]."""
        logits: Tensor = self.classify(F.relu(self.upsample(hidden)))
        return logits.float()


class IncoherenceHead(nn.Module):
    """The incoherence detector of the release: one 28×28 map a box, from which all levels are read.

    Args:
        width: channels of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.trunk = _trunk((width, width, width, width, half))
        self.upsample = nn.ConvTranspose2d(half, half, 2, 2)  # no ReLU after it, unlike the coarse head's
        self.classify = nn.Conv2d(half, 1, 1)

    def forward(self, features: Tensor, hidden: Tensor) -> Tensor:
        """x14 and h, [N, C, 14, 14] each → incoherence logits [N, 28, 28]."""
        x = features + hidden
        for convolution in self.trunk:
            x = F.relu(convolution(x))
        logits: Tensor = self.classify(self.upsample(x))
        return logits.squeeze(1).float()
