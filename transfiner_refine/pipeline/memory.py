"""Batches through a refiner in spite of too little memory: halved where they do not fit."""

from __future__ import annotations

import sys
from collections.abc import Callable

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask
from transfiner_refine.pipeline.batches import Batch
from transfiner_refine.pipeline.contract import MaskRefiner

__all__ = ["OomSplittingRefiner"]

# what PyTorch, CUDA's libraries and OpenCV write into errors that are not of a type of their own
_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "insufficient memory",
    "alloc_failed",
)


class OomSplittingRefiner:
    """Hands batches to a refiner; what fails for memory is tried again in halves.

    Masks do not depend on the batch, so nothing but speed is lost. An instance that does not fit even alone is
    at fault itself; so is one that the refiner refuses with an ``InputError``.

    Attributes:
        batch_size: instances that it takes at a time: the refiner's own number until that has proved too large.
    """

    def __init__(
        self, refiner: MaskRefiner, say: Callable[[str], None], progress: Callable[[int], object]
    ) -> None:
        """A refiner that fits.

        Args:
            refiner: does the work.
            say: told once, when the batch has to become smaller.
            progress: told of instances that are done; of as many less when their batch has failed.
        """
        self._refiner, self._say, self._said, self._progress = refiner, say, False, progress
        self.batch_size = refiner.batch_size

    def refine(self, batch: Batch) -> list[Mask | InputError]:
        """The refined mask of each instance, or why there is none."""
        fitted: list[int] = []
        refined = self._in_parts(batch, fitted)
        is_giant_to_blame = any(isinstance(each, InputError) for each in refined)
        if fitted and max(fitted) < len(batch) and not is_giant_to_blame:
            self.batch_size = min(self.batch_size, max(fitted))
        return refined

    def _in_parts(self, batch: Batch, fitted: list[int]) -> list[Mask | InputError]:
        """The batch whole, or else each half in the same way; ``fitted`` receives the sizes that went through."""
        refined, failure = self._attempt(batch)
        if failure is None:
            fitted.append(len(batch))
            return list(refined)
        if len(batch) == 1:
            self._progress(1)
            return [_blame(failure, batch)]
        if failure == "memory":
            self._say_once(len(batch))
            _free()
        half = (len(batch) + 1) // 2
        first = self._in_parts(batch.part(0, half), fitted)
        return first + self._in_parts(batch.part(half, len(batch)), fitted)

    def _say_once(self, instances: int) -> None:
        if not self._said:
            self._said = True
            self._say(
                f"{instances} masks at a time do not fit into memory; going on with fewer (same result)"
            )

    def _attempt(self, batch: Batch) -> tuple[list[Mask], str | InputError | None]:
        """The refined masks, or what stood against them.

        A function of its own, because an exception that is still being handled holds the memory of the attempt.
        """
        refined: list[Mask] = []
        try:
            for mask in self._refiner.refine_masks(batch.images, batch.masks, batch.image_index):
                refined.append(mask)
                self._progress(1)
            return refined, None
        except InputError as error:
            self._progress(-len(refined))
            return [], InputError(error.reason, file=error.file, record=error.record, remedy=error.remedy)
        except Exception as error:
            if not _is_about_memory(error):
                raise
            self._progress(-len(refined))
            return [], "memory"


def _is_about_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # a refiner without PyTorch must not load it
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return any(part in text for part in _MEMORY_TEXTS)


def _free() -> None:
    """Gives back what PyTorch keeps of the failed attempt, which may lie in pieces."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _blame(failure: str | InputError, batch: Batch) -> InputError:
    if isinstance(failure, InputError):
        return InputError(
            failure.reason,
            file=failure.file or batch.files[0],
            record=failure.record or batch.labels[0],
            remedy=failure.remedy,
        )
    height, width, _ = batch.images[0].shape
    return InputError(
        f"does not fit into the memory even alone (its image is {height}×{width})",
        file=batch.files[0],
        record=batch.labels[0],
        remedy="refine it on a device with more memory",
    )
