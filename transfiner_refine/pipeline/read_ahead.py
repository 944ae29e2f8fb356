"""Images decoded ahead of the refiner, in their order, a few at a time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.formats import RecordFault, Source, read_image
from transfiner_refine.pipeline.selection import Selection
from transfiner_refine.types import ImageRecord, InputError, MaskWindow

__all__ = ["PreparedImage", "read_ahead"]


@dataclass(frozen=True)
class PreparedImage:
    """An image with its pixels and those of its masks, ready to be refined.

    Attributes:
        pixels: [H, W, 3] uint8 RGB; None where no instance is left to refine.
        turned: its EXIF orientation was applied.
        indexes: ``Instance.index`` of what is to refine.
        coarse_masks: their masks, in the same order.
        passed_through: instances that are left alone, by reason.
        faults: instances that cannot be refined.
    """

    pixels: NDArray[np.uint8] | None
    turned: bool
    indexes: tuple[int, ...]
    coarse_masks: tuple[MaskWindow, ...]
    passed_through: Counter[str]
    faults: tuple[RecordFault, ...]


def read_ahead(
    source: Source, selection: Selection, pool: Executor, images_ahead: int
) -> Iterator[PreparedImage | RecordFault]:
    """Prepares images in the pool and gives them in the order of the source.

    At most ``images_ahead`` images are being decoded or waiting; memory does not grow with the source.
    """
    waiting: deque[Future[PreparedImage] | RecordFault] = deque()
    for item in source:
        waiting.append(item if isinstance(item, RecordFault) else pool.submit(_prepare, item, selection))
        if len(waiting) > images_ahead:
            yield _finished(waiting.popleft())
    while waiting:
        yield _finished(waiting.popleft())


def _finished(item: Future[PreparedImage] | RecordFault) -> PreparedImage | RecordFault:
    return item if isinstance(item, RecordFault) else item.result()


def _prepare(record: ImageRecord, selection: Selection) -> PreparedImage:
    passed_through: Counter[str] = Counter()
    faults: list[RecordFault] = []
    chosen: list[tuple[int, str, MaskWindow]] = []  # index, label, coarse mask
    for instance in record.instances:
        try:
            reason = selection.reason_to_skip(instance)
            if reason is None:
                coarse_mask = instance.mask.decode()
                reason = selection.reason_to_skip_mask(coarse_mask)
        except InputError as error:
            faults.append(RecordFault(error))
            continue
        if reason is None:
            chosen.append((instance.index, instance.label, coarse_mask))
        else:
            passed_through[reason] += 1
    if not chosen:
        return PreparedImage(None, False, (), (), passed_through, tuple(faults))
    try:
        image = read_image(record.path, {mask.image_size for _, _, mask in chosen})
    except InputError as error:
        faults.append(RecordFault(error, len(chosen), whole_image=True))
        return PreparedImage(None, False, (), (), passed_through, tuple(faults))
    height, width, _ = image.pixels.shape
    fitting = []
    for index, label, mask in chosen:
        if mask.image_size == (height, width):
            fitting.append((index, mask))
        else:
            faults.append(RecordFault(_misfit(record, label, mask, (height, width))))
    return PreparedImage(
        image.pixels,
        image.turned,
        tuple(index for index, _ in fitting),
        tuple(mask for _, mask in fitting),
        passed_through,
        tuple(faults),
    )


def _misfit(record: ImageRecord, label: str, mask: MaskWindow, size: tuple[int, int]) -> InputError:
    return InputError(
        f"the mask is {mask.image_size[0]}×{mask.image_size[1]} (height × width), but the image, "
        f"like other masks of it, is {size[0]}×{size[1]}",
        file=record.path,
        record=label,
        remedy="give masks of the image's size",
    )
