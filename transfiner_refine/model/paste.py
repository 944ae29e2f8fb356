"""From the finest level's map back to image pixels; thresholding comes last."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from transfiner_refine.model.roi import Roi, read_mask, resample
from transfiner_refine.types import MaskWindow

__all__ = ["paste_into_roi"]


def paste_into_roi(
    probability: NDArray[np.float32], refined: NDArray[np.bool_], coarse_mask: MaskWindow, roi: Roi
) -> NDArray[np.float32]:
    """The refined probability at the image's resolution inside the RoI.

    Args:
        probability: [grid, grid] from the finest level.
        refined: [grid, grid], cells labelled anew; all other pixels keep the coarse mask's value.
        coarse_mask: the mask that was refined.
        roi: where the grid lies in the image.

    Returns:
        [roi.height, roi.width] float32 in [0, 1].
    """
    values = resample(probability, roi.width, roi.height)
    inside = cv2.resize(
        refined.view(np.uint8), (roi.width, roi.height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return np.where(inside.astype(bool), values, read_mask(coarse_mask, roi))
