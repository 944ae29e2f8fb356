"""Which network a file's tensors belong to, from names and shapes alone (§1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from transfiner_refine.errors import CheckpointError
from transfiner_refine.official.config import Architecture

__all__ = ["recognise"]

Shapes = Mapping[str, tuple[int, ...]]

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
    ("roi_heads.mask_head.", "a Mask R-CNN checkpoint of torchvision or a relative"),
    ("roi_heads.box_head.", "a detector without masks"),
    ("roi_head.", "an MMDetection checkpoint"),
    ("backbone.", "a detector of another kind"),
    ("layer1.0.", "the weights of a ResNet backbone alone"),
    ("res2.0.", "the weights of a ResNet backbone alone"),
    ("stem.conv1.", "the weights of a ResNet backbone alone"),
    ("patch_embed.", "the weights of a Swin backbone alone"),
    ("layers.0.blocks.", "the weights of a Swin backbone alone"),
)


def recognise(shapes: Shapes, path: Path) -> Architecture:
    """The architecture that the tensors' names and shapes speak of.

    Args:
        shapes: by the release's names.
        path: the file, for messages.

    Raises:
        CheckpointError: the tensors belong to something else; the message says to what.
    """
    if not all(any(name.startswith(mark) for name in shapes) for mark in _MARKS):
        raise CheckpointError(_describe(shapes), file=path, remedy=_EXPECTED)
    reader = _Reader(shapes, path)
    width = reader.size("backbone.fpn_output2.weight", 0, 256)
    return replace(
        _backbone(reader),
        classes=reader.size(f"{_HEAD}predictor.weight", 0, 80),
        fpn_width=width,
        feedforward=reader.size(f"{_HEAD}encoder.layers.0.linear1.weight", 0, 2048),
        layers=reader.count(f"{_HEAD}encoder.layers.") or 3,
        box_width=reader.size("roi_heads.box_head.fc1.weight", 0, 0),
    )


def _describe(shapes: Shapes) -> str:
    for start, what in _OTHERS:
        if any(name.startswith(start) for name in shapes):
            return what
    return f"an unknown checkpoint of {len(shapes)} tensors, the first: {next(iter(shapes), 'none')}"


class _Reader:
    """Sizes and counts from tensors that may be missing or of a wrong shape."""

    def __init__(self, shapes: Shapes, path: Path) -> None:
        self.shapes, self.path = shapes, path

    def size(self, name: str, axis: int, default: int) -> int:
        """One side of a tensor; ``default`` if it is missing, which is reported later."""
        shape = self.shapes.get(name)
        if shape is None:
            return default
        if len(shape) <= axis or shape[axis] == 0:
            raise CheckpointError(f"tensor {name} has shape {shape}", file=self.path, remedy=_EXPECTED)
        return shape[axis]

    def count(self, prefix: str) -> int:
        """How many numbers follow a prefix: 1 + the largest."""
        pattern = re.compile(re.escape(prefix) + r"(\d{1,3})\.")
        numbers = [int(match[1]) for name in self.shapes if (match := pattern.match(name))]
        return max(numbers, default=-1) + 1


def _backbone(reader: _Reader) -> Architecture:
    """The architecture, with only the backbone's fields set."""
    if any(name.startswith(f"{_BACKBONE}patch_embed.") for name in reader.shapes):
        depths = [reader.count(f"{_BACKBONE}layers.{stage}.blocks.") for stage in range(4)]
        width = reader.size(f"{_BACKBONE}patch_embed.proj.weight", 0, 96)
        deformable = [False] * 4
        family: Literal["resnet", "swin"] = "swin"
        if width % 32:
            raise CheckpointError(
                f"a Swin backbone of width {width}", file=reader.path, remedy="expected a multiple of 32"
            )
    elif any(name.startswith(f"{_BACKBONE}res2.") for name in reader.shapes):
        family = "resnet"
        depths = [reader.count(f"{_BACKBONE}res{stage}.") for stage in range(2, 6)]
        width = reader.size(f"{_BACKBONE}stem.conv1.weight", 0, 64)
        deformable = [
            f"{_BACKBONE}res{stage}.0.conv2_offset.weight" in reader.shapes for stage in range(2, 6)
        ]
        _check_convolutions(reader)
    else:
        raise CheckpointError(
            "a Mask Transfiner with an unknown backbone",
            file=reader.path,
            remedy="known: ResNet with and without deformable convolutions, Swin",
        )
    a, b, c, d = (max(1, depth) for depth in depths)
    e, f, g, h = deformable
    return Architecture(family, (a, b, c, d), width, (e, f, g, h))


def _check_convolutions(reader: _Reader) -> None:
    """Refuses the relatives of ResNet that this package does not build."""
    shape = reader.shapes.get(f"{_BACKBONE}res2.0.conv2.weight", (1, 1))
    if len(shape) > 1 and shape[0] != shape[1]:
        raise CheckpointError(
            "a Mask Transfiner with a ResNeXt backbone", file=reader.path, remedy="known: ResNet and Swin"
        )
    offsets = [reader.size(name, 0, 18) for name in reader.shapes if name.endswith("conv2_offset.weight")]
    if any(channels != 18 for channels in offsets):
        raise CheckpointError(
            "a Mask Transfiner with modulated or grouped deformable convolutions",
            file=reader.path,
            remedy="known: plain ones with one group, as in the release",
        )
