"""The official network, from images to the labels of quadtree nodes (§2, §3, §4)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork, roi_align

from transfiner_refine.official.architecture import Architecture
from transfiner_refine.official.backbones import ResNet, Swin
from transfiner_refine.official.nodes import Nodes, box_levels, node_features
from transfiner_refine.official.transformer import NodeTransformer, Tokens, tokens_of

__all__ = ["Batch", "ImageFeatures", "OfficialNetwork", "Preparation", "network_size", "prepare"]

_CAFFE = ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
_TORCH = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_MULTIPLE = 32  # sides of the padded input, so that every stride divides them
_CONTEXT_GRID = 14  # of the context tokens, and of the features that the coarse and the incoherence head read


@dataclass(frozen=True)
class Preparation:
    """How an image becomes the network's input (§2).

    Attributes:
        short_side: the shorter side is resized to this, pixels.
        max_side: unless the longer one passes this; then it becomes this.
        mean, std: of the channels in the order blue, green, red.
    """

    short_side: int = 800
    max_side: int = 1333
    mean: tuple[float, float, float] = _CAFFE[0]
    std: tuple[float, float, float] = _CAFFE[1]

    @classmethod
    def of(cls, architecture: Architecture) -> Preparation:
        """The release's settings for a backbone.

        A Swin's mean and std are those of red, green, blue, but its images come as blue, green, red: the
        configuration file repeats a section, and the colour order falls back to its default.
        """
        mean, std = _TORCH if architecture.backbone == "swin" else _CAFFE
        return cls(mean=mean, std=std)


@dataclass(frozen=True)
class Batch:
    """Images as the network takes them.

    Attributes:
        input: [B, 3, H, W] float32, blue, green, red; normalised, then padded with zeros right and bottom.
        sizes: (height, width) of each resized image inside it, pixels.
        scales: [B, 4] float32, factors that turn XYXY boxes of an image into boxes of its resized image.
    """

    input: Tensor
    sizes: list[tuple[int, int]]
    scales: Tensor


def network_size(height: int, width: int, preparation: Preparation) -> tuple[int, int]:
    """(height, width) to which an image of ``height`` × ``width`` pixels is resized."""
    scale = preparation.short_side / min(height, width)
    new_height, new_width = scale * height, scale * width
    if height < width:  # the short side is exact, whatever the multiplication rounds to
        new_height = float(preparation.short_side)
    else:
        new_width = float(preparation.short_side)
    if max(new_height, new_width) > preparation.max_side:
        shrink = preparation.max_side / max(new_height, new_width)
        new_height, new_width = new_height * shrink, new_width * shrink
    return int(new_height + 0.5), int(new_width + 0.5)


def prepare(
    images: Sequence[NDArray[np.uint8]], preparation: Preparation, device: torch.device | None = None
) -> Batch:
    """The network's input from H×W×3 uint8 RGB images."""
    sizes = [network_size(image.shape[0], image.shape[1], preparation) for image in images]
    height, width = (-(-max(axis) // _MULTIPLE) * _MULTIPLE for axis in zip(*sizes, strict=True))
    mean = torch.tensor(preparation.mean, device=device)[:, None, None]
    std = torch.tensor(preparation.std, device=device)[:, None, None]
    padded, scales = [], []
    for image, (h, w) in zip(images, sizes, strict=True):
        bgr = Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))
        resized = np.array(bgr.resize((w, h), Image.Resampling.BILINEAR))
        pixels = torch.from_numpy(resized).to(device).permute(2, 0, 1).float()  # [3, h, w]
        padded.append(F.pad((pixels - mean) / std, (0, width - w, 0, height - h)))
        scales.append([w / image.shape[1], h / image.shape[0]] * 2)
    return Batch(torch.stack(padded), sizes, torch.tensor(scales, device=device))


@dataclass(frozen=True)
class ImageFeatures:
    """What one image gives its boxes to read.

    Attributes:
        maps: p2 … p5, [1, C, H/4, W/4] to [1, C, H/32, W/32].
        semantic: S(p2), [1, C, H/4, W/4].
        tables: p2 + S(p2), p3, p4, p5 with channels last, [H, W, C] each; quadtree nodes read these.
    """

    maps: list[Tensor]
    semantic: Tensor
    tables: list[Tensor]

    def pooled(self, boxes: Tensor, grid: int) -> Tensor:
        """RoIAlign of boxes [N, 4] XYXY pixels of the resized image, each from its level: [N, C, grid, grid]."""
        levels = box_levels(boxes)
        result = self.semantic.new_zeros(len(boxes), self.semantic.shape[1], grid, grid)
        for level in range(2, 6):
            mine = (levels == level).nonzero().squeeze(1)
            rois = F.pad(boxes[mine], (1, 0))  # all of image 0
            map_ = self.maps[level - 2]
            result[mine] = roi_align(map_, rois.to(map_.dtype), grid, 0.5**level, 0, aligned=True).to(
                result.dtype
            )
        return result

    def context(self, boxes: Tensor) -> Tensor:
        """x14, what both heads and the context tokens read: [N, C, 14, 14]."""
        return self.pooled(boxes, _CONTEXT_GRID)


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

    def features(self, images: Tensor) -> list[ImageFeatures]:
        """One pass over prepared images [B, 3, H, W]."""
        maps = list(self.fpn(OrderedDict(enumerate(self.backbone(images)))).values())
        semantic = self.semantic(maps[0])
        tables = [each.permute(0, 2, 3, 1).contiguous() for each in (maps[0] + semantic, *maps[1:])]
        return [
            ImageFeatures(
                [each[i : i + 1] for each in maps], semantic[i : i + 1], [each[i] for each in tables]
            )
            for i in range(len(images))
        ]

    def tokens(
        self, image: ImageFeatures, box: Tensor, context: Tensor, coarse: Tensor, levels: Sequence[Nodes]
    ) -> Tokens:
        """The tokens of one box.

        Args:
            image: the image's features.
            box: [4] XYXY, pixels of the resized image.
            context: [C, 14, 14], its context features.
            coarse: [28, 28] probability of its mask before refining.
            levels: the nodes of the three levels.
        """
        level = int(box_levels(box[None]))
        return tokens_of(
            context, coarse, levels, [node_features(image.tables, box, level, each) for each in levels]
        )

    def label(
        self, image: ImageFeatures, box: Tensor, context: Tensor, coarse: Tensor, levels: Sequence[Nodes]
    ) -> list[Tensor]:
        """Foreground probability of every node of one box, [n] for each level; arguments as for ``tokens``."""
        labels = torch.sigmoid(self.transformer(self.tokens(image, box, context, coarse, levels)))
        return list(torch.split(labels, [len(level) for level in levels]))
