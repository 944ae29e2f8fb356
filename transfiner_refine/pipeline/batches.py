"""Instances of neighbouring images put together for one call of the refiner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask
from transfiner_refine.formats.records import EncodedMask, ImageRecord
from transfiner_refine.masks import MaskWindow
from transfiner_refine.pipeline.prepare import PreparedImage, prepared_mask
from transfiner_refine.pipeline.tally import Place

__all__ = ["Batch", "ImageToRefine", "batches"]

_BATCH_PIXELS = 1 << 27  # of the images and masks of one batch; a single larger instance makes a batch alone


# an image that has instances to refine: its position in the source, the image as it was given, pixels and masks
ImageToRefine = tuple[int, ImageRecord, PreparedImage]


@dataclass
class Batch:
    """Instances for one call of the refiner.

    Attributes:
        images, masks, image_index: the arguments of ``MaskRefiner.refine_masks``.
        places: where each instance stands in the source.
        files: its photo, for messages.
        labels: how a person finds it in the source.
    """

    images: list[NDArray[np.uint8]] = field(default_factory=list)
    masks: list[Mask | MaskWindow] = field(default_factory=list)
    image_index: list[int] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    files: list[Path | None] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.masks)

    def part(self, start: int, stop: int) -> Batch:
        """The instances from ``start`` up to ``stop``, with their images only."""
        used = sorted(set(self.image_index[start:stop]))
        return Batch(
            [self.images[index] for index in used],
            self.masks[start:stop],
            [used.index(index) for index in self.image_index[start:stop]],
            self.places[start:stop],
            self.files[start:stop],
            self.labels[start:stop],
        )


def batches(
    images: Iterable[ImageToRefine],
    batch_size: Callable[[], int],
    refuse: Callable[[Place, InputError], None],
) -> Iterator[Batch]:
    """Batches of ``batch_size()`` instances; smaller at the end and where images or masks are very large.

    What is in a batch follows from its first instance, so a run that is resumed at the start of one has the
    same batches: a GPU rounds otherwise in other company.

    Args:
        images: an image may be in several batches that follow each other.
        batch_size: asked anew for every instance, as it may shrink.
        refuse: told of masks that can no longer be decoded.
    """
    batch, pixels = Batch(), 0
    for position, record, prepared in images:
        current = prepared.pixels
        assert current is not None
        for chosen in prepared.chosen:
            place = (position, chosen.index)
            try:
                mask = _decoded(chosen.coarse_mask)
            except InputError as error:
                refuse(place, error)
                continue
            cost = chosen.pixels + (0 if _holds(batch, current) else current.shape[0] * current.shape[1])
            if len(batch) and (len(batch) >= batch_size() or pixels + cost > _BATCH_PIXELS):
                yield batch
                batch, pixels = Batch(), 0
                cost = chosen.pixels + current.shape[0] * current.shape[1]
            if not _holds(batch, current):
                batch.images.append(current)
            batch.masks.append(mask)
            batch.image_index.append(len(batch.images) - 1)
            batch.places.append(place)
            batch.files.append(record.path)
            batch.labels.append(chosen.label)
            pixels += cost
    if len(batch):
        yield batch


def _holds(batch: Batch, image: NDArray[np.uint8]) -> bool:
    return bool(batch.images) and batch.images[-1] is image


def _decoded(mask: Mask | MaskWindow | EncodedMask) -> Mask | MaskWindow:
    return mask if isinstance(mask, MaskWindow) else prepared_mask(mask)
