"""Which official network a checkpoint belongs to, read off the names and shapes of its tensors (§1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transfiner_refine.errors import CheckpointError

__all__ = ["Architecture", "recognise"]

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
    """The shape of an official network.

    Attributes:
        backbone: family of the feature extractor.
        depths: blocks of its four stages.
        width: channels of a ResNet's stem (64) or of a Swin's patch embedding (96 tiny, 128 base).
        deformable: which ResNet stages have deformable 3×3 convolutions.
        classes: number of object classes K.
        fpn_width: channels of the feature pyramid and of the transformer.
        feedforward: hidden channels of the transformer's feed-forward part.
        layers: transformer layers.
    """

    backbone: Literal["resnet", "swin"] = "resnet"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    deformable: tuple[bool, ...] = (False, False, False, False)
    classes: int = 80
    fpn_width: int = 256
    feedforward: int = 2048
    layers: int = 3

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the backbone's maps at strides 4, 8, 16 and 32."""
        first = self.width * 4 if self.backbone == "resnet" else self.width
        return tuple(first << i for i in range(4))

    @property
    def name(self) -> str:
        """As people call it: R50-FPN, R101-FPN-DCN, Swin-B-FPN."""
        key = (
            (self.backbone, self.depths)
            if self.backbone == "resnet"
            else (self.backbone, self.depths, self.width)
        )
        blocks = "-".join(map(str, self.depths))
        named = _NAMED_DEPTHS.get(key, f"{self.backbone} {blocks} of width {self.width}")
        return f"{named}-FPN{'-DCN' if any(self.deformable) else ''}"


_BACKBONE = "backbone.bottom_up."
_HEAD = "roi_heads.mask_head."
#: What only Mask Transfiner has.
_MARKS = (f"{_HEAD}encoder.", f"{_HEAD}mask_fcn_uncertain")
_EXPECTED = "expected a checkpoint of the official Mask Transfiner (SysCV/transfiner)"
#: (a name's beginning, what a file with such names is), the first that fits.
_OTHERS = (
    (
        f"{_HEAD}mask_fcn1.",
        "a Mask R-CNN checkpoint of detectron2, without Transfiner's incoherence head and encoder",
    ),
    (_HEAD, "a Mask R-CNN checkpoint of torchvision or a relative"),
    ("roi_heads.box_head.", "a detector without masks"),
    ("roi_head.", "an MMDetection checkpoint"),
    ("backbone.", "a detector of another kind"),
    ("layer1.0.", "the weights of a ResNet backbone alone"),
    ("res2.0.", "the weights of a ResNet backbone alone"),
    ("stem.conv1.", "the weights of a ResNet backbone alone"),
    ("patch_embed.", "the weights of a Swin backbone alone"),
    ("layers.0.blocks.", "the weights of a Swin backbone alone"),
)
_MOST_CHANNELS, _MOST_BLOCKS = 65536, 100  # beyond these the shapes are nonsense, and building takes long


def recognise(shapes: Mapping[str, tuple[int, ...]], path: Path) -> Architecture:
    """The architecture that the tensors' names and shapes speak of.

    Args:
        shapes: by the release's names.
        path: the file, for messages.

    Raises:
        CheckpointError: the tensors belong to something else; the message says to what.
    """

    def has(start: str) -> bool:
        return any(name.startswith(start) for name in shapes)

    def refuse(what: str, remedy: str) -> CheckpointError:
        return CheckpointError(what, file=path, remedy=remedy)

    def size(name: str, axis: int, default: int, multiple: int = 1) -> int:
        """One side of a tensor; ``default`` if it is missing, which is reported later."""
        shape = shapes.get(name)
        if shape is None:
            return default
        if len(shape) <= axis or not 0 < shape[axis] <= _MOST_CHANNELS or shape[axis] % multiple:
            raise refuse(f"tensor {name} has shape {shape}", _EXPECTED)
        return shape[axis]

    def count(prefix: str, default: int) -> int:
        """How many numbers follow a prefix: 1 + the largest."""
        found = [re.match(re.escape(prefix) + r"(\d{1,4})\.", name) for name in shapes]
        number = max((int(match[1]) for match in found if match), default=default - 1) + 1
        if number > _MOST_BLOCKS:
            raise refuse(f"{number} parts named {prefix}*", _EXPECTED)
        return number

    if not all(map(has, _MARKS)):
        what = next((what for start, what in _OTHERS if has(start)), None)
        first = next(iter(shapes), "none")
        raise refuse(what or f"an unknown checkpoint of {len(shapes)} tensors, the first: {first}", _EXPECTED)
    family: Literal["resnet", "swin"] = "resnet" if has(f"{_BACKBONE}res2.") else "swin"
    deformable = [False] * 4
    if family == "resnet":
        depths = [count(f"{_BACKBONE}res{stage}.", 1) for stage in range(2, 6)]
        width = size(f"{_BACKBONE}stem.conv1.weight", 0, 64)
        deformable = [f"{_BACKBONE}res{stage}.0.conv2_offset.weight" in shapes for stage in range(2, 6)]
        if len(set(shapes.get(f"{_BACKBONE}res2.0.conv2.weight", ())[:2])) > 1:
            raise refuse("a Mask Transfiner with a ResNeXt backbone", "known: ResNet and Swin")
        if any(size(name, 0, 18) != 18 for name in shapes if name.endswith("conv2_offset.weight")):
            raise refuse(
                "a Mask Transfiner with modulated or grouped deformable convolutions",
                "known: plain ones with one group, as in the release",
            )
    elif has(f"{_BACKBONE}patch_embed."):
        depths = [count(f"{_BACKBONE}layers.{stage}.blocks.", 1) for stage in range(4)]
        width = size(f"{_BACKBONE}patch_embed.proj.weight", 0, 96)
        if width % 32:
            raise refuse(f"a Swin backbone of width {width}", "expected a multiple of 32")
    else:
        raise refuse(
            "a Mask Transfiner with an unknown backbone",
            "known: ResNet with and without deformable convolutions, Swin",
        )
    return Architecture(
        family,
        tuple(depths),
        width,
        tuple(deformable),
        classes=size(f"{_HEAD}predictor.weight", 0, 80),
        fpn_width=size("backbone.fpn_output2.weight", 0, 256, 4),
        feedforward=size(f"{_HEAD}encoder.layers.0.linear1.weight", 0, 2048),
        layers=count(f"{_HEAD}encoder.layers.", 3),
    )
