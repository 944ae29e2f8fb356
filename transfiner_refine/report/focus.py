"""Where to look: the place at an instance's outline where refining changed most."""

from __future__ import annotations

import cv2
import numpy as np

from transfiner_refine.masks import MaskWindow

__all__ = ["Box", "focus"]

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the image, x1 and y1 exclusive

_SHARE = 0.3  # of the object's longer side: shows some outline around the change
_LEAST = 32  # pixels


def focus(before: MaskWindow, after: MaskWindow) -> Box:
    """A square window on the most changed place; on the outline's topmost place where nothing changed.

    Args:
        before: tight bool window of the coarse mask, may be empty.
        after: tight bool window of the refined mask, may be empty.

    Returns:
        the window, inside the image as far as the image allows.
    """
    filled = [mask for mask in (before, after) if mask.values.size]
    x0, y0 = min(mask.x for mask in filled), min(mask.y for mask in filled)
    x1 = max(mask.x + mask.values.shape[1] for mask in filled)
    y1 = max(mask.y + mask.values.shape[0] for mask in filled)
    changed = np.zeros((y1 - y0, x1 - x0), bool)
    for mask in filled:
        h, w = mask.values.shape
        changed[mask.y - y0 : mask.y - y0 + h, mask.x - x0 : mask.x - x0 + w] ^= mask.values
    side = max(_LEAST, round(_SHARE * max(changed.shape)))
    if not changed.any():
        changed = np.zeros_like(changed)
        changed[0, int(np.argmax(filled[0].values[0]))] = True
    sums = cv2.boxFilter(
        changed.astype(np.float32), -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    # the mean place of all maxima: of equally good windows the middle one
    rows, columns = np.nonzero(sums >= sums.max() - 0.5)
    height, width = filled[0].image_size
    side_x, side_y = min(side, width), min(side, height)
    left = min(max(0, x0 + round(float(columns.mean())) - side_x // 2), width - side_x)
    top = min(max(0, y0 + round(float(rows.mean())) - side_y // 2), height - side_y)
    return left, top, left + side_x, top + side_y
