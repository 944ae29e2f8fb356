"""One image made ready for the refiner: its instances selected, its masks parsed, its pixels read."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.records import EncodedMask, ImageRecord, Instance
from transfiner_refine.images import check_pixels, read_image
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.pipeline.summary import CROWD

CRASHED = "replace the file, or leave out its records"  # remedy of an image that crashes a process
_MASK_BYTES = 1 << 26  # of one image's soft masks; what is beyond is decoded again when its turn comes
_SYSTEM = {
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENETUNREACH,
}  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """Which instances are refined; all others pass through unchanged, counted by reason."""

    min_area: int = 0  # foreground pixels; coarse masks of fewer are left alone
    score_threshold: float | None = None  # lower ones are left alone; instances without a score are refined
    categories: frozenset[int] | None = None  # category ids to refine, None for all

    def reason_to_skip(self, instance: Instance) -> str | None:
        """Why an instance passes through by what is said of it, None if nothing speaks against it."""
        threshold, score = self.score_threshold, instance.score
        if instance.is_crowd:
            return CROWD
        if instance.is_stuff:
            return "stuff region"
        if threshold is not None and score is not None and score < threshold:
            return f"score below {threshold:g}"
        if self.categories is not None and instance.category_id not in self.categories:
            return "category not chosen"
        return None

    def reason_to_skip_mask(self, coarse_mask: Mask | MaskWindow) -> str | None:
        """The same by its mask."""
        area = coarse_mask.area
        if area == 0:
            return "empty mask"
        return f"area below {self.min_area} pixels" if area < self.min_area else None


def category_ids(chosen: Iterable[int | str], known: Mapping[int, str], file: Path) -> frozenset[int] | None:
    """Category ids from ids and names as a user gives them; None if none are given.

    A name goes before an id; where the file names no categories, ids alone can be given and any is taken.

    Raises:
        InputError: a name or id that the file does not have.
    """
    ids: set[int] = set()
    for choice in chosen:
        named = {category_id for category_id, name in known.items() if name == choice}
        is_whole = isinstance(choice, int) or choice.removeprefix("-").isdecimal()
        if named:
            ids |= named
        elif is_whole and (not known or int(choice) in known):
            ids.add(int(choice))
        else:
            listed = ", ".join(f"{category_id} {name}" for category_id, name in list(known.items())[:8])
            more = ", ..." if len(known) > 8 else ""
            remedy = (
                f"choose among {listed}{more}" if known else "give a category id, for this file has no names"
            )
            raise InputError(f"has no category {str(choice)!r}", file=file, remedy=remedy)
    return frozenset(ids) or None


@dataclass(frozen=True)
class ChosenInstance:
    """An instance that is to be refined; ``index`` and ``label`` are those of ``Instance``."""

    index: int
    label: str
    # as a refiner takes it, or as it came where the soft masks of the image would take much memory
    coarse_mask: Mask | MaskWindow | EncodedMask
    pixels: int  # of the box that the mask is decoded in


@dataclass(frozen=True)
class InstanceFault:
    """Instances that cannot be refined."""

    error: InputError  # why
    indexes: tuple[int, ...]  # their ``Instance.index``
    whole_image: bool = False  # the image itself is at fault
    by_refiner: bool = False  # the refiner refused it, not the preparation

    @property
    def instances(self) -> int:
        """Number of them, as in ``RecordFault``."""
        return len(self.indexes)


@dataclass(frozen=True)
class PreparedImage:
    """An image with its pixels and those of its masks. Every instance is in one of the lists."""

    pixels: NDArray[np.uint8] | None = None  # [H, W, 3] RGB; None where no instance is left to refine
    turned: bool = False  # its EXIF orientation was applied
    chosen: tuple[ChosenInstance, ...] = ()  # what is to refine
    kept: tuple[tuple[int, str], ...] = ()  # (index, reason) of the instances that are left alone
    faults: tuple[InstanceFault, ...] = ()  # instances that cannot be refined


@dataclass(frozen=True)
class Preparing:
    """``prepare`` as what the processes of a ``WorkerPool`` do."""

    selection: Selection
    max_image_pixels: int
    in_threads = True

    def begin(self, number: int) -> None:
        """Nothing is to be set up in a process."""

    def __call__(self, image: ImageRecord) -> PreparedImage:
        return prepare(image, self.selection, self.max_image_pixels)

    def crashed(self, image: ImageRecord, how: str | None) -> PreparedImage:
        """The image with all its instances at fault; ``how`` its process ended, None for lack of memory."""
        if how is None:
            return failed(image, no_memory(image))
        reason = f"decoding it crashed the decoder process ({how})"
        return failed(image, InputError(reason, file=image.path, remedy=CRASHED))


def prepare(image: ImageRecord, selection: Selection, max_image_pixels: int) -> PreparedImage:
    """Reads an image and its masks; whatever is wrong with them comes out as faults.

    Raises:
        OSError: the system is at fault, see ``system_fault``.
    """
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
            reason = selection.reason_to_skip(instance)
            if reason is None:
                size = instance.mask.size
                check_pixels(*size, max_image_pixels)  # a few runs can state a giant
                mask = prepared_mask(instance.mask)
                reason = selection.reason_to_skip_mask(mask)
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
        return PreparedImage(kept=tuple(kept), faults=tuple(faults))
    try:
        assert record.path is not None  # refining opens its sources with the images
        found, turned = read_image(record.path, set(sizes), max_image_pixels, record.orientation)
    except Exception as error:
        indexes = tuple(each.index for each in chosen)
        faults.append(InstanceFault(_named(error, record), indexes, whole_image=True))
        return PreparedImage(kept=tuple(kept), faults=tuple(faults))
    height, width, _ = found.shape
    fitting = []
    for each, size in zip(chosen, sizes, strict=True):
        if size == (height, width):
            fitting.append(each)
        else:
            faults.append(InstanceFault(_misfit(record, each.label, size, (height, width)), (each.index,)))
    return PreparedImage(found, turned, tuple(fitting), tuple(kept), tuple(faults))


def prepared_mask(mask: Mask | MaskWindow | EncodedMask) -> Mask | MaskWindow:
    """A mask as a refiner takes it: runs, or a window of probabilities.

    Raises:
        InputError: the encoding is damaged.
    """
    if isinstance(mask, (Mask, MaskWindow)):
        return mask
    window = mask.decode()
    return Mask.from_window(window) if window.values.dtype == bool else window


def failed(image: ImageRecord, error: InputError) -> PreparedImage:
    """The image with all its instances at fault."""
    return PreparedImage(faults=(InstanceFault(error, image.indexes, whole_image=True),))


def no_memory(record: ImageRecord, label: str | None = None) -> InputError:
    """What to say where decoding an image or one of its masks needs too much."""
    return InputError(
        "needs more memory than there is",
        file=record.path,
        record=label,
        remedy="make it smaller, or use a machine with more",
    )


def system_fault(error: BaseException | None) -> OSError | None:
    """What the system refused behind an error (no more open files, no space, a broken disk): not the input's fault."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _SYSTEM:
            return error
        error = error.__cause__ or error.__context__
    return None


def _named(error: Exception, record: ImageRecord, instance: Instance | None = None) -> InputError:
    """An exception as what is wrong with the image or one of its records.

    Raises:
        OSError: neither is at fault.
    """
    if (fault := system_fault(error)) is not None:
        raise fault
    if isinstance(error, InputError):
        if instance is None or error.record or error.file:
            return error
        return error.at(record.path, instance.label)
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
        remedy="give masks of the image's size; --fit-masks stretches those of mask images, arrays and COCO",
    )
