"""One image made ready for the refiner: its masks sorted out and decoded, its pixels read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask
from transfiner_refine.formats.records import EncodedMask, ImageRecord, Instance
from transfiner_refine.images import check_pixels, read_image
from transfiner_refine.masks import MaskWindow
from transfiner_refine.pipeline.selection import Selection

__all__ = [
    "ChosenInstance",
    "InstanceFault",
    "PreparedImage",
    "Preparing",
    "failed",
    "no_memory",
    "prepare",
    "prepared_mask",
]

_MASK_BYTES = 1 << 26  # of one image's soft masks; what is beyond is decoded again when its turn comes


@dataclass(frozen=True)
class Preparing:
    """How images are prepared.

    Attributes:
        selection: which instances are refined.
        max_image_pixels: the largest height × width that is decoded.
    """

    selection: Selection
    max_image_pixels: int


@dataclass(frozen=True)
class ChosenInstance:
    """An instance that is to be refined.

    Attributes:
        index: ``Instance.index``.
        label: ``Instance.label``.
        coarse_mask: as a refiner takes it, or as it came where the soft masks of the image would take much memory.
        pixels: of the box that the mask is decoded in.
    """

    index: int
    label: str
    coarse_mask: Mask | MaskWindow | EncodedMask
    pixels: int


@dataclass(frozen=True)
class InstanceFault:
    """Instances that cannot be refined.

    Attributes:
        error: why.
        indexes: their ``Instance.index``.
        whole_image: the image itself is at fault.
    """

    error: InputError
    indexes: tuple[int, ...]
    whole_image: bool = False


@dataclass(frozen=True)
class PreparedImage:
    """An image with its pixels and those of its masks, ready to be refined. Every instance is in one of the lists.

    Attributes:
        pixels: [H, W, 3] uint8 RGB; None where no instance is left to refine.
        turned: its EXIF orientation was applied.
        chosen: what is to refine.
        kept: (index, reason) of the instances that are left alone.
        faults: instances that cannot be refined.
    """

    pixels: NDArray[np.uint8] | None
    turned: bool
    chosen: tuple[ChosenInstance, ...]
    kept: tuple[tuple[int, str], ...]
    faults: tuple[InstanceFault, ...]


def prepare(image: ImageRecord, how: Preparing) -> PreparedImage:
    """Reads an image and its masks; whatever is wrong with them comes out as faults, never as an exception."""
    try:
        record, unread = image.read()
    except Exception as error:
        return failed(image, _named(error, image))
    kept: list[tuple[int, str]] = []
    faults = [InstanceFault(error, (index,)) for index, error in unread]
    chosen: list[ChosenInstance] = []
    sizes: list[tuple[int, int]] = []
    soft_bytes = 0
    for instance in record.instances:
        try:
            reason = how.selection.reason_to_skip(instance)
            if reason is None:
                size = instance.mask.size
                check_pixels(*size, how.max_image_pixels)  # a few runs can state a giant
                mask = prepared_mask(instance.mask)
                reason = how.selection.reason_to_skip_mask(mask)
        except Exception as error:
            faults.append(InstanceFault(_named(error, record, instance), (instance.index,)))
            continue
        if reason is not None:
            kept.append((instance.index, reason))
            continue
        held: Mask | MaskWindow | EncodedMask = mask
        if isinstance(mask, Mask):
            x0, y0, x1, y1 = mask.box
            pixels = (x1 - x0) * (y1 - y0)
        else:
            pixels = mask.values.size
            soft_bytes += mask.values.nbytes
            held = mask if soft_bytes <= _MASK_BYTES or not chosen else instance.mask
        chosen.append(ChosenInstance(instance.index, instance.label, held, pixels))
        sizes.append(size)
        del mask, held
    if not chosen:
        return PreparedImage(None, False, (), tuple(kept), tuple(faults))
    try:
        assert record.path is not None  # refining opens its sources with the photos
        photo = read_image(record.path, set(sizes), how.max_image_pixels)
    except Exception as error:
        indexes = tuple(each.index for each in chosen)
        faults.append(InstanceFault(_named(error, record), indexes, whole_image=True))
        return PreparedImage(None, False, (), tuple(kept), tuple(faults))
    height, width, _ = photo.pixels.shape
    fitting = []
    for each, size in zip(chosen, sizes, strict=True):
        if size == (height, width):
            fitting.append(each)
        else:
            faults.append(InstanceFault(_misfit(record, each.label, size, (height, width)), (each.index,)))
    return PreparedImage(photo.pixels, photo.turned, tuple(fitting), tuple(kept), tuple(faults))


def prepared_mask(mask: EncodedMask) -> Mask | MaskWindow:
    """A mask as a refiner takes it: runs, or a window of probabilities.

    Raises:
        InputError: the encoding is damaged.
    """
    if isinstance(mask, Mask):
        return mask
    window = mask.decode()
    return Mask.from_window(window) if window.values.dtype == bool else window


def failed(image: ImageRecord, error: InputError) -> PreparedImage:
    """The image with all its instances at fault."""
    return PreparedImage(None, False, (), (), (InstanceFault(error, image.indexes, whole_image=True),))


def no_memory(record: ImageRecord, label: str | None = None) -> InputError:
    """What to say where decoding an image or one of its masks needs too much."""
    return InputError(
        "needs more memory than there is",
        file=record.path,
        record=label,
        remedy="make it smaller, or use a machine with more",
    )


def _named(error: Exception, record: ImageRecord, instance: Instance | None = None) -> InputError:
    """An exception as what is wrong with the image or one of its records."""
    if isinstance(error, InputError):
        if instance is None or error.record or error.file:
            return error
        return InputError(error.reason, file=record.path, record=instance.label, remedy=error.remedy)
    label = None if instance is None else instance.label
    if isinstance(error, MemoryError):
        return no_memory(record, label)
    # readers should not let these through; where one does, the other images must not pay for it
    return InputError(
        f"cannot be decoded ({type(error).__name__}: {error})",
        file=record.path,
        record=label,
        remedy="replace it, or report this as a bug if it is sound",
    )


def _misfit(record: ImageRecord, label: str, mask: tuple[int, int], image: tuple[int, int]) -> InputError:
    return InputError(
        f"the mask is {mask[0]}×{mask[1]} (height × width), but the image, "
        f"like other masks of it, is {image[0]}×{image[1]}",
        file=record.path,
        record=label,
        remedy="give masks of the image's size",
    )
