"""Masks whose right answer is known: the truth itself, and the truth spoilt in one simple way at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from transfiner_refine.evaluation.overlap import common_window
from transfiner_refine.masks import MaskWindow

__all__ = ["CONTROLS", "box_side"]

_MORPH_SHARE = 0.02  # of the box side
_SHIFT_SHARE = 0.04  # the largest shift of the simulated coarse masks


def box_side(mask: MaskWindow) -> float:
    """Square root of the area of the mask's box, pixels."""
    return math.sqrt(mask.tight().values.size)


def _morphed(mask: MaskWindow, operation: int) -> MaskWindow:
    """The mask eroded or dilated by 2 % of its box side, at least a pixel, but not at the image's border."""
    mask = mask.tight()
    radius = max(1, round(_MORPH_SHARE * box_side(mask)))
    (crop,) = common_window(mask, margin=radius + 1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    values = np.asarray(cv2.morphologyEx(crop, operation, disc)).astype(bool)
    return MaskWindow(values, max(mask.x - radius - 1, 0), max(mask.y - radius - 1, 0), mask.image_size)


def _shifted(mask: MaskWindow) -> MaskWindow:
    """The mask moved right and down by 4 % of its box side, at least a pixel, cut at the image's border."""
    mask = mask.tight()
    step = max(1, round(_SHIFT_SHARE * box_side(mask)))
    x, y = mask.x + step, mask.y + step
    height, width = mask.image_size
    return MaskWindow(mask.values[: max(height - y, 0), : max(width - x, 0)], x, y, mask.image_size)


def _full_box(mask: MaskWindow) -> MaskWindow:
    """Every pixel of the mask's box."""
    mask = mask.tight()
    return MaskWindow(np.ones_like(mask.values), mask.x, mask.y, mask.image_size)


def _empty(mask: MaskWindow) -> MaskWindow:
    """Nothing, where the mask was."""
    mask = mask.tight()
    return MaskWindow(np.zeros_like(mask.values), mask.x, mask.y, mask.image_size)


CONTROLS: dict[str, Callable[[MaskWindow], MaskWindow]] = {
    "true mask": lambda mask: mask,
    "eroded by 2 %": lambda mask: _morphed(mask, cv2.MORPH_ERODE),
    "dilated by 2 %": lambda mask: _morphed(mask, cv2.MORPH_DILATE),
    "shifted by 4 %": _shifted,
    "full box": _full_box,
    "empty": _empty,
}
"""By name, what is made of a true mask before it is refined; shares are of the side of its box."""
