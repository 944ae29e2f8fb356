"""Masks as vector outlines: exact to the pixel, sharp at every zoom, a few kilobytes where a bitmap has megabytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.masks import MaskWindow

__all__ = ["mask_path"]


def mask_path(mask: MaskWindow) -> str:
    """The outline of a mask as the data of an SVG path; filled by the even-odd rule it gives the mask's pixels.

    Outlines run along the pixels' edges, holes are loops of their own. Two masks' data in one path show, by the
    same rule, the pixels in which they differ.

    Args:
        mask: bool, or soft values that count from 0.5 on.

    Returns:
        relative horizontal and vertical steps in pixels of the image, "M12 30h3v1h-3z"; "" for an empty mask.
    """
    foreground = mask.values if mask.values.dtype == bool else mask.values >= 0.5
    framed = np.pad(foreground, 1)
    # A corner of the outline is a point of the pixel grid with an odd number of foreground pixels around it. Where
    # two meet by a corner only, it is one twice.
    one, other = framed[:-1, :-1], framed[1:, 1:]
    across, down = framed[:-1, 1:], framed[1:, :-1]
    odd = one ^ other ^ across ^ down
    saddle = (one == other) & (across == down) & (one != across)
    y, x = np.nonzero(odd | saddle)
    twice = np.where(saddle[y, x], 2, 1)
    y, x = np.repeat(y, twice), np.repeat(x, twice)
    if len(y) == 0:
        return ""
    # Along a row the outline's edges join the first corner with the second, the third with the fourth and so on;
    # along a column likewise. nonzero gives the corners by rows.
    along_row = _partners(np.arange(len(y)))
    along_column = _partners(np.lexsort((y, x)))
    return _loops((x + mask.x).tolist(), (y + mask.y).tolist(), along_row.tolist(), along_column.tolist())


def _partners(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Who is joined with whom, [corners]: in that order each even position with the odd one after it."""
    partners = np.empty_like(order)
    partners[order[0::2]] = order[1::2]
    partners[order[1::2]] = order[0::2]
    return partners


def _loops(x: list[int], y: list[int], along_row: list[int], along_column: list[int]) -> str:
    """Follows rows and columns in turn until every corner has been passed."""
    parts: list[str] = []
    passed = bytearray(len(x))
    for start in range(len(x)):
        if passed[start]:
            continue
        parts.append(f"M{x[start]} {y[start]}")
        at = start
        while True:
            side = along_row[at]
            passed[at] = passed[side] = 1
            parts.append(f"h{x[side] - x[at]}")
            at = along_column[side]
            if at == start:
                parts.append("z")
                break
            parts.append(f"v{y[at] - y[side]}")
    return "".join(parts)
