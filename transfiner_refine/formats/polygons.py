"""Polygons to masks and masks to polygons.

The rule: a pixel belongs to a polygon if its centre lies inside (even-odd). Pixel (row 0, column 0) covers
[0, 1] × [0, 1], so its centre is (0.5, 0.5), and a polygon along the edges of pixels gives exactly these pixels back.
Points that people click, and polygons in COCO's manner, are of this frame too.

Contours as OpenCV's ``findContours`` draws them are of another: their points name pixels, so a contour from 2 to 5
means the pixels 2, 3, 4 and 5 and not the interval [2, 5]. Read by the rule above such masks would lose their last row
and column. ``is_pixel_contour`` knows them by their steps, and ``fill_contour`` reads them to the pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.segmentation import MAX_OUTLINE
from transfiner_refine.masks import MaskWindow, check_size, union

_INSET = 0.25  # pixels; under the half that decides, and far above what is lost in text of six digits
# pixels; text of six digits is at most half of that away from a whole number in an image of 20,000
_WHOLE = 0.02
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
    check_size(size)
    height, width = size
    rings = [np.asarray(points, np.float64).reshape(-1, 2) for points in polygons if len(points)]
    if not rings:
        return union([], size)
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
    crossed = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64) - first
    if (total := int(crossed.sum())) == 0:
        return union([], size)
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
    """The pixels that a contour of ``findContours`` ([points, xy], whole numbers) names, and those inside it.

    Bridges between joined contours, which are walked there and back, draw nothing where they run askew; in the eight
    directions they look like a line of single pixels, which a contour also walks there and back. Raises InputError as
    ``fill_polygons`` does.
    """
    import cv2  # here, because listing the formats must not wait for it

    inside = fill_polygons([np.rint(points) + 0.5], size)
    a = np.clip(np.rint(points).astype(np.int32), 0, (size[1] - 1, size[0] - 1))
    b = np.roll(a, -1, axis=0)
    forward = (a[:, 0] < b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] <= b[:, 1]))
    edges = np.where(forward[:, None], np.hstack((a, b)), np.hstack((b, a)))
    edges, which = np.unique(edges, axis=0, return_inverse=True)
    balance = np.bincount(which.ravel(), weights=np.where(forward, 1.0, -1.0))
    steps = np.abs(edges[:, 2:] - edges[:, :2])
    askew = (steps.min(axis=1) > 0) & (steps[:, 0] != steps[:, 1])
    (x0, y0), (x1, y1) = a.min(axis=0).tolist(), a.max(axis=0).tolist()
    drawn = np.zeros((y1 - y0 + 1, x1 - x0 + 1), np.uint8)
    lines = edges[(balance != 0) | ~askew].reshape(-1, 2, 2) - np.array((x0, y0), np.int32)
    cv2.polylines(drawn, list(lines), False, 1)
    drawn[a[:, 1] - y0, a[:, 0] - x0] = 1
    return union([inside, MaskWindow(drawn.astype(bool), x0, y0, size)], size)


class Loop(NamedTuple):
    """One closed outline: [points, xy], pixels in the image, only where it turns.

    The first point is the leftmost of the topmost, and the second lies below it.
    """

    points: NDArray[np.int64]
    is_hole: bool  # background lies inside


def outlines(mask: MaskWindow) -> list[Loop]:
    """The outlines of a mask along the edges of its pixels: parts and holes, by their topmost, then leftmost point.

    Pixels that touch at a corner belong together, as in OpenCV's contours. Soft masks count from 0.5 on.
    """
    import cv2  # here, because listing the formats must not wait for it

    # The contour of a mask of twice the size runs through the pixels on either side of an edge: half of their
    # coordinates, rounded up, are those of the edge.
    double = mask.foreground.repeat(2, axis=0).repeat(2, axis=1).view(np.uint8)
    contours, tree = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    points = (np.concatenate(contours)[:, 0].astype(np.int64) + 1) // 2 + (mask.x, mask.y)
    owner = np.repeat(np.arange(len(contours)), [len(contour) for contour in contours])
    # a diagonal makes two points of a corner; then, what lies within a line goes
    for doubled in (True, False):
        after = np.arange(1, len(owner) + 1)
        (last,) = np.diff(owner, append=-1).nonzero()
        after[last] = np.concatenate(([0], last[:-1] + 1))
        goes = (points[after] - points).astype(bool)
        came = np.empty_like(goes)
        came[after] = goes
        kept = goes.any(axis=1) if doubled else goes[:, 0] != came[:, 0]
        points, owner = points[kept], owner[kept]
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    loops = [
        Loop(np.concatenate((loop[:1], loop[:0:-1])) if hole else loop, hole)
        for loop, hole in zip(np.split(points, starts[1:]), (tree[0][:, 3] >= 0).tolist(), strict=True)
    ]
    return [loops[number] for number in np.lexsort(points[starts].T)]


def inset_points(loop: Loop) -> list[tuple[float, float]]:
    """The points of a loop, (x, y), with every line moved a quarter of a pixel to the side of the foreground.

    Pixel centres are where they were. A reader that paints the outline too (``cv2.fillPoly`` after cutting coordinates
    to whole numbers, Pillow's ``ImageDraw.polygon``) would add a row and a column to a polygon along the very edges of
    the pixels; from this one it paints the same pixels.

    Loops go down first, and outlines of parts have the foreground to the right then, those of holes to the left.
    """
    points = loop.points.astype(np.float64)
    way = np.sign(np.roll(points, -1, axis=0) - points)  # of the line from each point to the next
    inset = -_INSET if loop.is_hole else _INSET
    across = np.repeat(way[0::2, 1], 2) * inset  # the vertical line at a point is its own or the one before
    along = np.roll(np.repeat(way[1::2, 0], 2), 1) * -inset  # the horizontal one is the one before or its own
    return [(x, y) for x, y in (points + np.stack((across, along), axis=1)).tolist()]


def joined_outline(mask: MaskWindow) -> NDArray[np.float64]:
    """[points, xy] of one polygon that holds all parts and holes of a mask; 0 points for an empty one.

    Its lines are those of ``inset_points``, all of them horizontal or vertical. Parts and holes hang together by
    bridges that are walked there and back and so enclose nothing. A bridge leads from the top of a part or hole to
    the left until it meets another outline; where there is none, it leads to the part before.
    """
    loops = outlines(mask)
    if not loops:
        return np.zeros((0, 2))
    points: list[tuple[float, float]] = []
    follows: list[int] = []  # the point that comes after each
    starts = []
    for loop in loops:
        starts.append(len(points))
        points += inset_points(loop)
        follows += [*range(len(follows) + 1, len(points)), starts[-1]]
    ends = [*starts[1:], len(points)]
    bridges = []  # (how far along a line its bridge meets it, first point of the line, first and last of the loop)
    for line, start, end in zip(_lines_met(mask, loops), starts[1:], ends[1:], strict=True):
        down = points[line + 1][1] > points[line][1]
        along = points[start][1] - points[line][1]
        bridges.append((along if down else -along, line, start, end - 1))
    bridges.sort(reverse=True)  # the nearest is put in last, and so comes first
    for _, line, first, last in bridges:
        foot, back = (points[line][0], points[first][1]), len(points)
        points += [foot, points[first], foot]
        follows += [first, back + 2, follows[line]]
        follows[line], follows[last] = back, back + 1
    walk = [0]
    while at := follows[walk[-1]]:
        walk.append(at)
    return np.array([points[at] for at in walk])


def _lines_met(mask: MaskWindow, loops: list[Loop]) -> list[int]:
    """For each loop but the first: where among the points of all loops the vertical line begins that its bridge meets.

    The line is always of a loop before: one that reaches the row of a loop's first point, and lies to the left of it,
    begins above or to the left.
    """
    ends = np.concatenate([loop.points for loop in loops])
    x, top = ends[0::2, 0], np.minimum(ends[0::2, 1], ends[1::2, 1])  # of each vertical line
    order = np.lexsort((top, x))
    scale = mask.image_size[0] + 1
    keys = (x * scale + top)[order]
    framed = np.pad(mask.foreground, 1)
    edges = framed[:, :-1] != framed[:, 1:]  # [h + 2, w + 1]: pieces of vertical lines, by row of pixels
    met: list[int] = []
    row, columns, before = -1, np.zeros(0, np.int64), 0
    for previous, loop in pairwise(loops):
        here_x, here_y = loop.points[0].tolist()
        if here_y != row:  # loops come by row
            row, at = here_y, here_y - mask.y
            columns = np.flatnonzero(edges[at] | edges[at + 1]) + mask.x
        found = int(np.searchsorted(columns, here_x)) - 1
        if found < 0:
            met.append(before)  # the first line of the loop before
        else:
            line = int(np.searchsorted(keys, columns[found] * scale + here_y, side="right")) - 1
            met.append(2 * int(order[line]))
        before += len(previous.points)
    return met
