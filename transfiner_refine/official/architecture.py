"""Which official network a checkpoint belongs to, read off the names and shapes of its tensors (§1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transfiner_refine.errors import CheckpointError

_NAMED: dict[tuple[object, ...], str] = {
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
    """The shape of an official network."""

    backbone: Literal["resnet", "swin"] = "resnet"
    depths: tuple[int, ...] = (3, 4, 6, 3)  # blocks of the backbone's four stages
    width: int = 64  # channels of a ResNet's stem (64) or of a Swin's patch embedding (96 tiny, 128 base)
    deformable: tuple[bool, ...] = (False,) * 4  # which ResNet stages have deformable 3×3 convolutions
    classes: int = 80
    fpn_width: int = 256  # channels of the feature pyramid and of the transformer
    feedforward: int = 2048  # hidden channels of the transformer's feed-forward part
    layers: int = 3  # of the transformer

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the backbone's maps at strides 4, 8, 16 and 32."""
        first = self.width * 4 if self.backbone == "resnet" else self.width
        return tuple(first << i for i in range(4))

    @property
    def name(self) -> str:
        """As people call it: R50-FPN, R101-FPN-DCN, Swin-B-FPN."""
        key = (self.backbone, self.depths, self.width)[: 2 if self.backbone == "resnet" else 3]
        blocks = "-".join(map(str, self.depths))
        named = _NAMED.get(key, f"{self.backbone} {blocks} of width {self.width}")
        return f"{named}-FPN{'-DCN' if any(self.deformable) else ''}"


_BACKBONE = "backbone.bottom_up."
_HEAD = "roi_heads.mask_head."
#: What only Mask Transfiner has.
_MARKS = (f"{_HEAD}encoder.", f"{_HEAD}mask_fcn_uncertain")
_EXPECTED = "expected a checkpoint of the official Mask Transfiner (SysCV/transfiner)"
_RESNET, _SWIN = ("the weights of a ResNet backbone alone", "the weights of a Swin backbone alone")
_PLAIN_MASK_RCNN = "a Mask R-CNN checkpoint of detectron2, without Transfiner's incoherence head and encoder"
#: A name's beginning → what a file with such names is; the first that fits.
_OTHERS = {
    f"{_HEAD}mask_fcn1.": _PLAIN_MASK_RCNN,
    _HEAD: "a Mask R-CNN checkpoint of torchvision or a relative",
    "roi_heads.box_head.": "a detector without masks",
    "roi_head.": "an MMDetection checkpoint",
    "backbone.": "a detector of another kind",
    **dict.fromkeys(("layer1.0.", "res2.0.", "stem.conv1."), _RESNET),
    **dict.fromkeys(("patch_embed.", "layers.0.blocks."), _SWIN),
}
_MOST_CHANNELS, _MOST_BLOCKS = 65536, 100  # beyond these the shapes are nonsense, and building takes long


def recognise(shapes: Mapping[str, tuple[int, ...]], path: Path) -> Architecture:
    """The architecture that the shapes of tensors, by the release's names, speak of; ``path`` is for messages.

    Raises:
        CheckpointError: the tensors belong to something else; the message says to what.
    """

    def has(start: str) -> bool:
        return any(name.startswith(start) for name in shapes)

    def refuse(what: str, remedy: str = _EXPECTED) -> CheckpointError:
        return CheckpointError(what, file=path, remedy=remedy)

    def rows(name: str, default: int, multiple: int = 1) -> int:
        """The first side of a tensor; ``default`` if it is missing, which is reported later."""
        shape = shapes.get(name, (default,))
        if not shape or not 0 < shape[0] <= _MOST_CHANNELS or shape[0] % multiple:
            raise refuse(f"tensor {name} has shape {shape}")
        return shape[0]

    def count(prefix: str, default: int) -> int:
        """How many numbers follow a prefix: 1 + the largest."""
        found = [re.match(re.escape(prefix) + r"(\d{1,4})\.", name) for name in shapes]
        number = max((int(match[1]) for match in found if match), default=default - 1) + 1
        if number > _MOST_BLOCKS:
            raise refuse(f"{number} parts named {prefix}*")
        return number

    if not all(map(has, _MARKS)):
        unknown = f"an unknown checkpoint of {len(shapes)} tensors, the first: {next(iter(shapes), 'none')}"
        raise refuse(next((what for start, what in _OTHERS.items() if has(start)), unknown))
    family: Literal["resnet", "swin"] = "resnet" if has(f"{_BACKBONE}res2.") else "swin"
    deformable = [False] * 4
    if family == "resnet":
        depths = [count(f"{_BACKBONE}res{stage}.", 1) for stage in range(2, 6)]
        width = rows(f"{_BACKBONE}stem.conv1.weight", 64)
        deformable = [f"{_BACKBONE}res{stage}.0.conv2_offset.weight" in shapes for stage in range(2, 6)]
        if len(set(shapes.get(f"{_BACKBONE}res2.0.conv2.weight", ())[:2])) > 1:
            raise refuse("a Mask Transfiner with a ResNeXt backbone", "known: ResNet and Swin")
        if any(rows(name, 18) != 18 for name in shapes if name.endswith("conv2_offset.weight")):
            what = "a Mask Transfiner with modulated or grouped deformable convolutions"
            raise refuse(what, "known: plain ones with one group, as in the release")
    elif has(f"{_BACKBONE}patch_embed."):
        depths = [count(f"{_BACKBONE}layers.{stage}.blocks.", 1) for stage in range(4)]
        width = rows(f"{_BACKBONE}patch_embed.proj.weight", 96)
        if width % 32:
            raise refuse(f"a Swin backbone of width {width}", "expected a multiple of 32")
    else:
        known = "known: ResNet with and without deformable convolutions, Swin"
        raise refuse("a Mask Transfiner with an unknown backbone", known)
    return Architecture(
        family,
        tuple(depths),
        width,
        tuple(deformable),
        classes=rows(f"{_HEAD}predictor.weight", 80),
        fpn_width=rows("backbone.fpn_output2.weight", 256, 4),
        feedforward=rows(f"{_HEAD}encoder.layers.0.linear1.weight", 2048),
        layers=count(f"{_HEAD}encoder.layers.", 3),
    )
