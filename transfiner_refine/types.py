"""What the rooms of the package hand each other: masks, instances, image records, errors.

Coordinates: boxes are XYXY floats in pixels, origin at the top-left corner of the top-left pixel, so pixel
(row 0, column 0) covers [0, 1] x [0, 1]. Images are H×W×3 uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CheckpointError",
    "DeviceError",
    "EncodedMask",
    "ImageRecord",
    "InputError",
    "Instance",
    "MaskRefineError",
    "MaskWindow",
    "OutputError",
]


class MaskRefineError(Exception):
    """Base of every error this package raises on purpose; its text is one line, fit to show to a user.

    Args:
        reason: what is wrong, with the value that was found.
        file: the file it was found in.
        record: the record inside the file, as a person would look for it ("record 17", "annotation id 4").
        remedy: what to do about it.
    """

    def __init__(
        self,
        reason: str,
        *,
        file: str | Path | None = None,
        record: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.reason, self.record, self.remedy = reason, record, remedy
        self.file = None if file is None else str(file)
        where = ": ".join(part for part in (self.file, record) if part)
        text = f"{where}: {reason}" if where else reason
        super().__init__(_one_line(f"{text}; {remedy}" if remedy else text))


def _one_line(text: str) -> str:
    """The text without line breaks, and without what a file could make a terminal do or stumble over."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in line
    )


class InputError(MaskRefineError):
    """An image, a mask, a record or a results file that cannot be used as it is."""


class OutputError(MaskRefineError):
    """A result that cannot be written where it was asked for."""


class CheckpointError(MaskRefineError):
    """A weights file that is missing, damaged, or of another kind than expected."""


class DeviceError(MaskRefineError):
    """A device or a precision that this machine does not have."""


@dataclass(frozen=True)
class MaskWindow:
    """A mask (or a probability map) of one instance inside a rectangular window of its image; outside it is zero.

    Attributes:
        values: [h, w] bool, or float32 probabilities in [0, 1].
        x: column of the window's left edge in the image, pixels.
        y: row of the window's top edge in the image, pixels.
        image_size: (height, width) of the image, pixels.
    """

    values: NDArray[Any]
    x: int
    y: int
    image_size: tuple[int, int]

    def paste(self) -> NDArray[Any]:
        """The mask at full image size: [H, W], the dtype of ``values``."""
        full = np.zeros(self.image_size, self.values.dtype)
        h, w = self.values.shape
        full[self.y : self.y + h, self.x : self.x + w] = self.values
        return full

    def tight(self) -> MaskWindow:
        """The same mask with the window shrunk to its foreground (values ≥ 0.5); 0×0 if there is none."""
        foreground = self.values if self.values.dtype == bool else self.values >= 0.5
        rows, columns = np.flatnonzero(foreground.any(1)), np.flatnonzero(foreground.any(0))
        if len(rows) == 0:
            return MaskWindow(self.values[:0, :0], self.x, self.y, self.image_size)
        y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        return MaskWindow(self.values[y0:y1, x0:x1], self.x + x0, self.y + y0, self.image_size)

    @property
    def area(self) -> int:
        """Number of foreground pixels (values ≥ 0.5)."""
        return int(np.count_nonzero(self.values if self.values.dtype == bool else self.values >= 0.5))


@runtime_checkable
class EncodedMask(Protocol):
    """A mask as it travels between rooms: compact, decoded only where its pixels are needed."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image the mask belongs to, pixels."""

    def decode(self) -> MaskWindow:
        """The mask inside its bounding box.

        Raises:
            InputError: the encoding is damaged.
        """


@dataclass(frozen=True)
class Instance:
    """One detection: its coarse mask and what the detector said of it.

    Attributes:
        index: position in the source, 0-based over the whole source; the refined mask goes back under it.
        mask: the coarse mask in the frame of its image.
        label: how a person finds the record in its source ("record 17", "street_002.png").
        category_id: class id as the source has it, None where the format has no classes.
        score: detector's confidence, None where the format has none.
        is_crowd: the mask covers a group (COCO ``iscrowd``); such regions are never refined.
        instance_id: the id the source itself gives the instance (annotation id, value in an id map), None where
            the format has none.
        is_stuff: the mask is of an uncountable class such as sky (COCO panoptic ``isthing`` 0); such regions are
            never refined either.
    """

    index: int
    mask: EncodedMask
    label: str
    category_id: int | None = None
    score: float | None = None
    is_crowd: bool = False
    instance_id: int | None = None
    is_stuff: bool = False


@dataclass(frozen=True)
class ImageRecord:
    """One image and its instances, in the order of the source.

    Attributes:
        path: the image file; None where the source was opened without photos.
        name: how the source names the image (file name or image id), for messages.
        instances: the instances; may be empty.
        size: (height, width) the source states for the image, None where it states none.
        image_id: the id the source gives the image, None where the format has none.
        file_name: the photo's path inside the folder of photos, with "/", as far as the source or the folder
            tells; None where only an id is known.
    """

    path: Path | None
    name: str
    instances: tuple[Instance, ...] = field(default=())
    size: tuple[int, int] | None = None
    image_id: int | str | None = None
    file_name: str | None = None

    @property
    def indexes(self) -> tuple[int, ...]:
        """``Instance.index`` of each instance."""
        return tuple(instance.index for instance in self.instances)

    def without(self, done: Collection[int]) -> ImageRecord:
        """The same image without some instances, by index."""
        return replace(self, instances=tuple(each for each in self.instances if each.index not in done))

    def read(self) -> tuple[ImageRecord, list[tuple[int, InputError]]]:
        """The image with its instances parsed, and what is wrong with the others, by index."""
        return self, []

    @property
    def stated_pixels(self) -> int:
        """Pixels of the image as far as the source tells without looking at it, else 0."""
        try:
            height, width = self.size or self.instances[0].mask.size
        except (InputError, IndexError):
            return 0
        return height * width
