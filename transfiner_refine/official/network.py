"""The official network as modules, in the order of the method; the two modes of use are built on its parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transfiner_refine.official.config import Architecture
from transfiner_refine.official.fpn import FeaturePyramidNetwork, SemanticResidual
from transfiner_refine.official.heads import CoarseHead, IncoherenceHead
from transfiner_refine.official.pyramid import FeaturePyramid
from transfiner_refine.official.quadtree import QuadtreeLevel
from transfiner_refine.official.regions import Regions, feature_table
from transfiner_refine.official.resnet import ResNet
from transfiner_refine.official.sequence import NodeTransformer, gather_tokens
from transfiner_refine.official.swin import Swin

__all__ = ["ImageFeatures", "OfficialNetwork"]


@dataclass(frozen=True)
class ImageFeatures:
    """What one pass over the images yields.

    Attributes:
        maps: p2 … p5, [B, C, H/4, W/4] to [B, C, H/32, W/32].
        semantic: S(p2).
        table: all of them, as RoIs read them.
    """

    maps: list[Tensor]
    semantic: Tensor
    table: FeaturePyramid


class OfficialNetwork(nn.Module):
    """Mask Transfiner as its authors released it, from images to the labels of quadtree nodes."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        width = architecture.fpn_width
        self.backbone = ResNet(architecture) if architecture.backbone == "resnet" else Swin(architecture)
        self.fpn = FeaturePyramidNetwork(architecture.channels, width)
        self.semantic = SemanticResidual(width)
        self.coarse = CoarseHead(width, architecture.classes)
        self.incoherence = IncoherenceHead(width)
        self.sequence = NodeTransformer(width, architecture.feedforward, architecture.layers)

    def features(self, images: Tensor) -> ImageFeatures:
        """One pass over prepared images [B, 3, H, W]."""
        maps = self.fpn(self.backbone(images))
        semantic = self.semantic(maps[0])
        return ImageFeatures(maps, semantic, feature_table(maps, semantic))

    def label(
        self, regions: Regions, features: Tensor, coarse: Tensor, levels: list[QuadtreeLevel]
    ) -> list[Tensor]:
        """Foreground probability of every node.

        Args:
            regions: n boxes.
            features: [n, C, 14, 14], their context features.
            coarse: [n, 28, 28] probability of their masks before refining.
            levels: the nodes of the three levels.

        Returns:
            [m] for each level.
        """
        tokens = gather_tokens(regions, features, coarse, levels)
        probability = torch.sigmoid(self.sequence(tokens, len(regions)))
        return list(torch.split(probability, [len(level) for level in levels]))
