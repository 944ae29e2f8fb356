"""Instances in batches through a refiner: filled across images, halved where they do not fit into memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.pipeline.prepare import ChosenInstance, prepared_mask, system_fault

_BATCH_PIXELS = 1 << 27  # of the images and masks of one batch; a single larger instance makes a batch alone
# what PyTorch, CUDA's libraries and OpenCV write into errors that are not of a type of their own
_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "insufficient memory",
    "alloc_failed",
)


class MaskRefiner(Protocol):
    """Refines the masks of a batch, which may come from several images; ``batch_size`` is how many it wants."""

    batch_size: int

    def refine_masks(
        self,
        images: Sequence[NDArray[np.uint8]],
        masks: Sequence[Mask | MaskWindow],
        image_index: Sequence[int],
    ) -> Iterable[Mask]:
        """Refines the masks, each by itself: the result of one does not depend on the others.

        Args:
            images: [H, W, 3] uint8 RGB each. They may lie in memory that other processes share; holding on to
                them is allowed.
            masks: coarse masks; a window where the mask is soft (float32). ``masks[i]`` belongs to
                ``images[image_index[i]]``.
            image_index: for each mask the position of its image in ``images``.

        Returns:
            masks of the size of their images in the order of ``masks``; without a pixel where nothing is left. An
            iterator that gives each when it is done makes the progress bar move by instance.

        Raises:
            InputError: a mask cannot be refined.
        """


class WindowRefiner(Protocol):
    """The same with decoded masks."""

    batch_size: int

    def refine_windows(
        self, images: Sequence[NDArray[np.uint8]], masks: Sequence[MaskWindow], image_index: Sequence[int]
    ) -> list[MaskWindow]:
        """As ``MaskRefiner.refine_masks``; a window is where the refiner looked, the mask the values in it."""


AnyRefiner = MaskRefiner | WindowRefiner


class ImageToRefine(NamedTuple):
    """An image that has instances to refine."""

    position: int  # in the source
    file: Path | None
    identity: int  # see ``Journal``
    turned: bool
    pixels: NDArray[np.uint8]  # [H, W, 3] RGB
    chosen: Sequence[ChosenInstance]


class BatchItem(NamedTuple):
    """An instance on its way through the refiner."""

    image: ImageToRefine
    instance: int  # ``Instance.index``
    label: str
    mask: Mask | MaskWindow


def batches(
    images: Iterable[ImageToRefine],
    batch_size: Callable[[], int],
    refuse: Callable[[ImageToRefine, int, InputError], None],
) -> Iterator[list[BatchItem]]:
    """Batches of ``batch_size()`` instances; smaller at the end and where images or masks are very large.

    What is in a batch follows from its first instance, so a run that is resumed at the start of one has the
    same batches: a GPU rounds otherwise in other company.

    Args:
        images: an image may be in several batches that follow each other.
        batch_size: asked anew for every instance, as it may shrink.
        refuse: told of masks that can no longer be decoded, by image and ``Instance.index``.
    """
    batch: list[BatchItem] = []
    pixels = 0
    for image in images:
        for chosen in image.chosen:
            try:
                mask = prepared_mask(chosen.coarse_mask)
            except InputError as error:
                if (system := system_fault(error)) is not None:
                    raise system from error
                refuse(image, chosen.index, error)
                continue
            is_new = not batch or batch[-1].image is not image
            its_pixels = image.pixels.size // 3
            if batch and (
                len(batch) >= batch_size() or pixels + chosen.pixels + is_new * its_pixels > _BATCH_PIXELS
            ):
                yield batch
                batch, pixels, is_new = [], 0, True
            batch.append(BatchItem(image, chosen.index, chosen.label, mask))
            pixels += chosen.pixels + is_new * its_pixels
    if batch:
        yield batch


class OomSplittingRefiner:
    """Hands batches to a refiner; what fails for memory is tried again in halves.

    Masks do not depend on the batch, so nothing but speed is lost. An instance that does not fit even alone is
    at fault itself; so is one that the refiner refuses with an ``InputError``.

    Attributes:
        batch_size: instances that it takes at a time: the refiner's own number until that has proved too large.
    """

    def __init__(
        self, refiner: AnyRefiner, say: Callable[[str], None], progress: Callable[[int], object]
    ) -> None:
        """``say`` is told once, when the batch has to become smaller; ``progress`` of instances that are done, and of
        as many less when their batch has failed.
        """
        self._refiner, self._say, self._progress = refiner, say, progress
        self._said, self._fitted = False, 0  # instances of the largest part of a batch that went through
        self.batch_size = refiner.batch_size

    def refine(self, batch: Sequence[BatchItem]) -> list[Mask | InputError]:
        """The refined mask of each instance, or why there is none."""
        self._fitted = 0
        refined = self._in_parts(batch)
        is_giant_to_blame = any(isinstance(each, InputError) for each in refined)
        if 0 < self._fitted < len(batch) and not is_giant_to_blame:
            self.batch_size = min(self.batch_size, self._fitted)
        return refined

    def _in_parts(self, batch: Sequence[BatchItem]) -> list[Mask | InputError]:
        """The batch whole, or else each half in the same way."""
        refined, failure = self._attempt(batch)
        if failure is None:
            self._fitted = max(self._fitted, len(batch))
            return list(refined)
        if len(batch) == 1:
            self._progress(1)
            return [_blame(failure, batch[0])]
        if failure == "memory":
            if not self._said:
                text = "masks at a time do not fit into memory; going on with fewer (same result)"
                self._say(f"{len(batch)} {text}")
            self._said = True
            torch = sys.modules.get("torch")
            if (
                torch and torch.cuda.is_initialized()
            ):  # it keeps memory of the attempt, which may lie in pieces
                torch.cuda.empty_cache()
        half = (len(batch) + 1) // 2
        return self._in_parts(batch[:half]) + self._in_parts(batch[half:])

    def _attempt(self, batch: Sequence[BatchItem]) -> tuple[list[Mask], InputError | str | None]:
        """The refined masks, or what stood against them; an exception would hold the memory of the attempt."""
        refined: list[Mask] = []
        try:
            for mask in refine_masks(self._refiner, batch):
                refined.append(mask)
                self._progress(1)
            return refined, None
        except InputError as error:
            self._progress(-len(refined))
            return [], error.at()
        except Exception as error:
            if not _is_about_memory(error):
                raise
            self._progress(-len(refined))
            return [], "memory"


def refine_masks(refiner: AnyRefiner, batch: Sequence[BatchItem]) -> Iterable[Mask]:
    """One call of a refiner; masks are decoded for a refiner of windows, and what it gives is encoded."""
    images: list[NDArray[np.uint8]] = []
    image_index = []
    for item in batch:
        if not images or images[-1] is not item.image.pixels:
            images.append(item.image.pixels)
        image_index.append(len(images) - 1)
    masks = [item.mask for item in batch]
    if hasattr(refiner, "refine_masks"):
        return refiner.refine_masks(images, masks, image_index)
    windows = [mask.decode() if isinstance(mask, Mask) else mask for mask in masks]
    return map(Mask.from_window, refiner.refine_windows(images, windows, image_index))


def _is_about_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # a refiner without PyTorch must not load it
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return any(part in text for part in _MEMORY_TEXTS)


def _blame(failure: str | InputError, item: BatchItem) -> InputError:
    if isinstance(failure, InputError):
        return failure.at(failure.file or item.image.file, failure.record or item.label)
    height, width, _ = item.image.pixels.shape
    return InputError(
        f"does not fit into the memory even alone (its image is {height}×{width})",
        file=item.image.file,
        record=item.label,
        remedy="refine it on a device with more memory",
    )
