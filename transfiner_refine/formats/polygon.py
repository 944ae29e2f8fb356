"""Polygons to masks. The rule: a pixel belongs to a polygon if its centre lies inside (even-odd).

Pixel (row 0, column 0) covers [0, 1] × [0, 1], so its centre is (0.5, 0.5), and a polygon along the edges of pixels
gives exactly these pixels back (``polygon_outline`` writes such). Points that people click, and polygons in COCO's
manner, are of this frame too.

Contours as OpenCV's ``findContours`` draws them are of another: their points name pixels, so a contour from 2 to 5
means the pixels 2, 3, 4 and 5 and not the interval [2, 5]. Read by the rule above such masks would lose their last row
and column. ``is_pixel_contour`` knows them by their steps, and ``fill_contour`` reads them to the pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.segmentation import MAX_OUTLINE
from transfiner_refine.masks import MAX_PIXELS, MaskWindow

__all__ = ["fill_contour", "fill_polygons", "is_pixel_contour"]

_WHOLE = (
    0.02  # pixels; text of six digits is at most half of that away from a whole number in a photo of 20,000
)
_MOST_BRIDGES = 0.25  # share of edges that may go askew, where several contours were joined to one


def fill_polygons(polygons: Sequence[NDArray[np.float64]], size: tuple[int, int]) -> MaskWindow:
    """The pixels whose centres are inside of an odd number of polygons.

    Args:
        polygons: [points, xy] each, pixels. What lies beyond the image is cut off.
        size: (height, width) of the image, pixels.

    Raises:
        InputError: the size is not that of an image, a point lies far outside of it or nowhere, or the polygons
            are longer than any outline.
    """
    height, width = size
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise InputError(f"the image's size is {height}×{width} (height × width)")
    empty = MaskWindow(np.zeros((0, 0), bool), 0, 0, size)
    rings = [np.asarray(points, np.float64).reshape(-1, 2) for points in polygons if len(points)]
    if not rings:
        return empty
    a = np.concatenate(rings)
    beyond = np.maximum(-a, a - (width, height))
    if not np.isfinite(a).all() or (beyond > max(height, width)).any():
        x, y = a[int(np.where(np.isfinite(beyond), beyond, np.inf).max(axis=1).argmax())]
        raise InputError(f"the point ({x:g}, {y:g}) lies far outside of its {width}×{height} image")
    b = np.concatenate([np.roll(points, -1, axis=0) for points in rings])
    # each edge from its upper end, so that an edge and its reverse cross a row at the very same place and cancel
    upper_first = (a[:, 1] < b[:, 1]) | ((a[:, 1] == b[:, 1]) & (a[:, 0] <= b[:, 0]))
    upper, lower = np.where(upper_first[:, None], a, b), np.where(upper_first[:, None], b, a)
    # the rows whose centre line (row + 0.5) an edge crosses; its lower end does not count
    first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64)
    crossed = last - first
    if (total := int(crossed.sum())) == 0:
        return empty
    if total > MAX_OUTLINE:
        raise InputError(f"the outline is {total} pixels long, more than the {MAX_OUTLINE} allowed")
    edge = np.repeat(np.arange(len(a)), crossed)
    row = np.arange(total) - np.repeat(np.cumsum(crossed) - crossed, crossed) + first[edge]
    slope = (lower[edge, 0] - upper[edge, 0]) / (lower[edge, 1] - upper[edge, 1])
    x = upper[edge, 0] + (row + 0.5 - upper[edge, 1]) * slope
    column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    x0, y0, y1 = int(column.min()), int(row.min()), int(row.max()) + 1
    toggles = np.zeros((y1 - y0, int(column.max()) - x0 + 1), bool)
    np.logical_xor.at(toggles, (row - y0, column - x0), True)
    inside = np.logical_xor.accumulate(toggles, axis=1)[:, :-1]
    return MaskWindow(inside, x0, y0, size).tight()


def is_pixel_contour(points: NDArray[np.float64]) -> bool:
    """Whether [points, xy] in pixels look as ``findContours`` draws: whole numbers, steps in eight directions.

    One diagonal step at least is asked for: outlines along the edges of pixels have none, and a rectangle could be
    either.
    """
    if len(points) < 3 or (np.abs(points - np.rint(points)) > _WHOLE).any():
        return False
    whole = np.rint(points).astype(np.int64)
    steps = np.abs(np.roll(whole, -1, axis=0) - whole)
    diagonal = (steps[:, 0] == steps[:, 1]) & (steps[:, 0] > 0)
    askew = ~diagonal & (steps.min(axis=1) > 0)
    return bool(diagonal.any() and np.count_nonzero(askew) <= _MOST_BRIDGES * len(points))


def fill_contour(points: NDArray[np.float64], size: tuple[int, int]) -> MaskWindow:
    """The pixels that a contour of ``findContours`` names, and those inside it.

    Bridges between joined contours, which are walked there and back, draw nothing where they run askew; in the eight
    directions they look like a line of single pixels, which a contour also walks there and back.

    Args:
        points: [points, xy], pixels; whole numbers.
        size: (height, width) of the image, pixels.

    Raises:
        InputError: as for ``fill_polygons``.
    """
    height, width = size
    inner = fill_polygons([np.rint(points) + 0.5], size)
    whole = np.clip(np.rint(points).astype(np.int64), 0, (width - 1, height - 1))
    outline = _outline(whole)
    x0, y0 = np.minimum(outline.min(axis=0), (inner.x, inner.y) if inner.area else (width, height))
    h, w = inner.values.shape
    x1, y1 = np.maximum(outline.max(axis=0) + 1, (inner.x + w, inner.y + h) if inner.area else (0, 0))
    values = np.zeros((y1 - y0, x1 - x0), bool)
    if inner.area:
        values[inner.y - y0 : inner.y - y0 + h, inner.x - x0 : inner.x - x0 + w] = inner.values
    values[outline[:, 1] - y0, outline[:, 0] - x0] = True
    return MaskWindow(values, int(x0), int(y0), size)


def _outline(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """[pixels, xy] along the edges of a closed walk, but for those askew that come in both directions."""
    a, b = points, np.roll(points, -1, axis=0)
    ordered = (a[:, 0] < b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] <= b[:, 1]))
    edges = np.where(ordered[:, None], np.hstack((a, b)), np.hstack((b, a)))
    _, at, forward = np.unique(edges, axis=0, return_index=True, return_inverse=True)
    balance = np.bincount(forward.ravel(), weights=np.where(ordered, 1.0, -1.0))
    steps = np.abs(b - a)[at]
    askew = (steps.min(axis=1) > 0) & (steps[:, 0] != steps[:, 1])
    kept = at[(balance != 0) | ~askew]
    a, b = a[kept], b[kept]
    lengths = np.abs(b - a).max(axis=1) if len(kept) else np.zeros(0, np.int64)
    edge = np.repeat(np.arange(len(kept)), lengths)
    step = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    along = a[edge] + np.rint((b - a)[edge] * (step / np.maximum(1, lengths[edge]))[:, None])
    return np.concatenate((points, along.astype(np.int64)))
