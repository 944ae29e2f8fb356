"""Refined windows as they travel on: encoded, and compared with what they were."""

from __future__ import annotations

import numpy as np

from transfiner_refine.formats import RleMask
from transfiner_refine.types import MaskWindow

__all__ = ["encode"]


def encode(coarse_mask: MaskWindow, refined: MaskWindow) -> tuple[RleMask | None, float]:
    """The refined mask (None if it is empty) and its changed pixels / pixels of the coarse mask's box."""
    refined = refined.tight()
    if refined.area == 0:
        return None, 0.0
    return RleMask.from_window(refined), _changed_share(coarse_mask.tight(), refined)


def _changed_share(coarse: MaskWindow, refined: MaskWindow) -> float:
    """Both windows tight."""
    (coarse_height, coarse_width), (height, width) = coarse.values.shape, refined.values.shape
    x0, y0 = max(coarse.x, refined.x), max(coarse.y, refined.y)
    x1 = max(x0, min(coarse.x + coarse_width, refined.x + width))
    y1 = max(y0, min(coarse.y + coarse_height, refined.y + height))
    before = coarse.values[y0 - coarse.y : y1 - coarse.y, x0 - coarse.x : x1 - coarse.x] >= 0.5
    after = refined.values[y0 - refined.y : y1 - refined.y, x0 - refined.x : x1 - refined.x]
    common = int(np.count_nonzero(before & after))
    box_area = int(coarse_height * coarse_width)
    return (coarse.area + refined.area - 2 * common) / box_area
