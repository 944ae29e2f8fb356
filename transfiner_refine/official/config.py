"""What an official checkpoint's architecture and its inference procedure can vary in, with every number's source.

Sections (§) are those of ``docs/official.md``; numbers are those of the authors' release.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "CONTEXT_GRID",
    "LIMIT",
    "NODE_GRIDS",
    "NODE_THRESHOLDS",
    "Architecture",
    "FaithfulOptions",
    "Preparation",
    "RefineOptions",
]

#: Grids of the nodes' three levels.
NODE_GRIDS = (28, 56, 112)
#: Grid of the context tokens, and of the features that the coarse and the incoherence head read.
CONTEXT_GRID = 14
#: Least incoherence of a node on each level; the release reads all three levels off one 28×28 map.
NODE_THRESHOLDS = (1e-6, 0.125, 0.8)
#: Boxes of a batch that the release refines at inference; the others keep their coarse mask.
LIMIT = 10

_CAFFE = ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
_TORCH = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_NAMED_DEPTHS: dict[tuple[object, ...], str] = {
    ("resnet", (3, 4, 6, 3)): "R50",
    ("resnet", (3, 4, 23, 3)): "R101",
    ("resnet", (3, 8, 36, 3)): "R152",
    ("swin", (2, 2, 6, 2), 96): "Swin-T",
    ("swin", (2, 2, 18, 2), 96): "Swin-S",
    ("swin", (2, 2, 18, 2), 128): "Swin-B",
    ("swin", (2, 2, 18, 2), 192): "Swin-L",
}


@dataclass(frozen=True)
class Architecture:
    """The shape of an official network, read off the tensors of its checkpoint.

    Attributes:
        backbone: family of the feature extractor.
        depths: blocks of its four stages.
        width: channels of a ResNet's stem (64) or of a Swin's patch embedding (96 tiny, 128 base).
        deformable: which ResNet stages have deformable 3×3 convolutions.
        classes: number of object classes K.
        fpn_width: channels of the feature pyramid and of the transformer.
        feedforward: hidden channels of the transformer's feed-forward part.
        layers: transformer layers.
        box_width: hidden channels of the box head; 0 where RPN and box head are not there.
    """

    backbone: Literal["resnet", "swin"] = "resnet"
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    deformable: tuple[bool, bool, bool, bool] = (False, False, False, False)
    classes: int = 80
    fpn_width: int = 256
    feedforward: int = 2048
    layers: int = 3
    box_width: int = 0

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of the backbone's maps at strides 4, 8, 16 and 32."""
        first = self.width * 4 if self.backbone == "resnet" else self.width
        return first, first * 2, first * 4, first * 8

    @property
    def name(self) -> str:
        """As people call it: R50-FPN, R101-FPN-DCN, Swin-B-FPN."""
        deformable = "-DCN" if any(self.deformable) else ""
        named = _NAMED_DEPTHS.get((self.backbone, self.depths)) if self.backbone == "resnet" else None
        named = named or _NAMED_DEPTHS.get((self.backbone, self.depths, self.width))
        blocks = "-".join(map(str, self.depths))
        return f"{named or f'{self.backbone} {blocks} of width {self.width}'}-FPN{deformable}"


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
class FaithfulOptions:
    """Peculiarities of the release that change masks; all off is the method itself.

    Attributes:
        limit: boxes of the batch that are refined, the rest keep their coarse mask; None for all
            (the release: ``LIMIT``).
        skip_empty_level: leave out the step at the 56 level if no box of the batch has a node there. In the
            release a box without such nodes gets other values when a neighbour has one; off, every box takes
            its own decision, so it does not depend on its neighbours.
        demo: the demo's dilation of the 112-level nodes and its blur, which darkens the RoI's border.
    """

    limit: int | None = None
    skip_empty_level: bool = False
    demo: bool = False

    @classmethod
    def evaluation(cls) -> FaithfulOptions:
        """The release as it is evaluated."""
        return cls(limit=LIMIT, skip_empty_level=True)

    @classmethod
    def demonstration(cls) -> FaithfulOptions:
        """The release's demo script."""
        return cls(limit=LIMIT, skip_empty_level=True, demo=True)


@dataclass(frozen=True)
class RefineOptions:
    """Refining foreign masks with an official network.

    Attributes:
        roi_margin: width and height added to the mask's box, as a share of its side (both edges together). The
            network was trained on detector boxes that fit about this well.
        roi_min_margin: the least margin on each edge, pixels.
        roi_max_aspect: the short side is widened to at least the long one over this; the release never widens.
        thresholds: least incoherence of a node on each level.
        visit_disagreement: make nodes of the cells where the given mask and the network's own coarse mask
            differ, whatever the incoherence says. The detector was trained to find borders, not foreign errors.
    """

    roi_margin: float = 0.1
    roi_min_margin: int = 2
    roi_max_aspect: float = math.inf
    thresholds: tuple[float, float, float] = NODE_THRESHOLDS
    visit_disagreement: bool = True

    def margin(self, _: float) -> float:
        """As ``roi_margin``, whatever the side of the box."""
        return self.roi_margin
