"""What the pipeline needs of a refiner; anything with this method can stand in for ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.types import MaskWindow

__all__ = ["WindowRefiner"]


class WindowRefiner(Protocol):
    """Refines the masks of a batch, which may come from several images.

    Attributes:
        batch_size: instances it wants at a time.
    """

    batch_size: int

    def refine_windows(
        self, images: Sequence[NDArray[np.uint8]], masks: Sequence[MaskWindow], image_index: Sequence[int]
    ) -> list[MaskWindow]:
        """Refines the masks, each by itself: the result of one does not depend on the others.

        Args:
            images: [H, W, 3] uint8 RGB each.
            masks: coarse masks, bool or soft float32; ``masks[i]`` belongs to ``images[image_index[i]]``.
            image_index: for each mask the position of its image in ``images``.

        Returns:
            bool windows in the order of ``masks``; a window is where the refiner looked, the mask the
            values in it.
        """
