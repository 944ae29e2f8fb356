"""What the pipeline needs of a refiner; anything with one of these methods can stand in for ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.formats import Mask
from transfiner_refine.masks import MaskWindow

__all__ = ["AnyRefiner", "MaskRefiner", "WindowRefiner", "as_mask_refiner"]


class MaskRefiner(Protocol):
    """Refines the masks of a batch, which may come from several images.

    Attributes:
        batch_size: instances it wants at a time.
    """

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
    """The same with decoded masks.

    Attributes:
        batch_size: instances it wants at a time.
    """

    batch_size: int

    def refine_windows(
        self, images: Sequence[NDArray[np.uint8]], masks: Sequence[MaskWindow], image_index: Sequence[int]
    ) -> list[MaskWindow]:
        """As ``MaskRefiner.refine_masks``; a window is where the refiner looked, the mask the values in it."""


AnyRefiner = MaskRefiner | WindowRefiner


def as_mask_refiner(refiner: AnyRefiner) -> MaskRefiner:
    """The refiner itself if it takes encoded masks, else an adapter."""
    return refiner if hasattr(refiner, "refine_masks") else _Decoding(refiner)  # type: ignore[return-value]


class _Decoding:
    """Decodes masks for a refiner of windows and encodes what it gives."""

    def __init__(self, refiner: WindowRefiner) -> None:
        self._refiner, self.batch_size = refiner, refiner.batch_size

    def refine_masks(
        self,
        images: Sequence[NDArray[np.uint8]],
        masks: Sequence[Mask | MaskWindow],
        image_index: Sequence[int],
    ) -> Iterable[Mask]:
        windows = [mask.decode() if isinstance(mask, Mask) else mask for mask in masks]
        return map(Mask.from_window, self._refiner.refine_windows(images, windows, image_index))
