"""Close-ups: a large object is looked at once more, part by part, at twice the resolution.

An RoI is resized to a square of fixed size, so on a large object the finest cells are several pixels long, and the
backbone, which reads half that size, sees its outline blurred. Once the whole is settled, windows of the RoI go
through the same network with the mask as it is by then; what they say is blended from window to window. CascadePSP
(Cheng et al., CVPR 2020) refines locally after globally for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.refine.roi import Roi

__all__ = ["OVERLAP", "blend_close_ups", "close_up_windows"]

_UNDIVIDED = 0.7  # an axis up to this long, relative to the RoI's longer side, stays whole
_SHARE = 0.6  # of a longer axis that each of its two windows covers
#: Share of a window that overlaps with the other one of its axis.
OVERLAP = 2 - 1 / _SHARE


def close_up_windows(roi: Roi) -> list[Roi]:
    """Two or four windows that cover an RoI, two of them along each axis that is not much the shorter."""
    rows = _windows(roi.y0, roi.y1, roi.side)
    columns = _windows(roi.x0, roi.x1, roi.side)
    return [Roi(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]


def _windows(start: int, stop: int, side: int) -> list[tuple[int, int]]:
    length = stop - start
    if length <= _UNDIVIDED * side:
        return [(start, stop)]
    part = round(_SHARE * length)
    return [(start, start + part), (stop - part, stop)]


def blend_close_ups(
    roi: Roi,
    before: NDArray[np.float32],
    windows: Sequence[Roi],
    labels: Sequence[NDArray[np.float32] | None],
) -> NDArray[np.float32]:
    """One map from those of the windows, each counting less towards the edges where another one goes on.

    Args:
        roi: the whole.
        before: [roi.height, roi.width], foreground probability before the close-ups.
        windows: from ``close_up_windows``.
        labels: [height, width] of each window, the foreground probability it gives; None where ``before`` stays.

    Returns:
        [roi.height, roi.width].
    """
    total = np.zeros_like(before)
    weights = np.zeros_like(before)
    for window, label in zip(windows, labels, strict=True):
        rows = slice(window.y0 - roi.y0, window.y1 - roi.y0)
        columns = slice(window.x0 - roi.x0, window.x1 - roi.x0)
        weight = np.outer(
            _weights(window.y0, window.y1, roi.y0, roi.y1), _weights(window.x0, window.x1, roi.x0, roi.x1)
        )
        total[rows, columns] += weight * (before[rows, columns] if label is None else label)
        weights[rows, columns] += weight
    blended: NDArray[np.float32] = total / weights
    return blended


def _weights(start: int, stop: int, first: int, last: int) -> NDArray[np.float32]:
    """Along one axis of a window: 1, falling towards an edge that is not the RoI's: [stop - start]."""
    length = stop - start
    slope = max(1.0, length * OVERLAP)
    place = np.arange(length, dtype=np.float32) + 0.5
    weight = np.ones(length, np.float32)
    if start > first:
        weight = np.minimum(weight, place / slope)
    if stop < last:
        weight = np.minimum(weight, place[::-1] / slope)
    return weight
