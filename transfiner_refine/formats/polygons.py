"""Polygons to masks and masks to polygons.

The rule: a pixel belongs to a polygon if its centre lies inside (even-odd). Pixel (row 0, column 0) covers
[0, 1] × [0, 1], so its centre is (0.5, 0.5), and a polygon along the edges of pixels gives exactly these pixels back.
Points that people click, and polygons in COCO's manner, are of this frame too.

Contours as OpenCV's ``findContours`` draws them are of another: their points name pixels, so a contour from 2 to 5
means the pixels 2, 3, 4 and 5 and not the interval [2, 5]. Read by the rule above such masks would lose their last row
and column. ``is_pixel_contour`` knows them by their steps, and ``fill_contour`` reads them to the pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.segmentation import MAX_OUTLINE, mask_from_segmentation
from transfiner_refine.masks import Mask, MaskWindow, check_size, union

_INSET = 0.25  # pixels; under the half that decides, and far above what is lost in text of six digits
# pixels; text of six digits is at most half of that away from a whole number in an image of 20,000
_WHOLE = 0.02
_MOST_BRIDGES = 0.25  # share of edges that may go askew, where several contours were joined to one
LEAST_IOU = (
    0.99  # of a mask and its simplified polygons; masks of less than 100 pixels come back as they were
)
_CORNER = (
    4  # pixels; two edges of that length meet in a corner that is meant, shorter ones in a step of a slope
)
_MOST_LOOPS = 500  # of a mask that is simplified; nobody edits more
_BRIDGE_WINDOW = 2048  # points that a bridge may lead to; bounds the time for masks of many thousand parts
Ring: TypeAlias = NDArray[np.float64]
"""A closed line: [points, xy], pixels."""
Part: TypeAlias = list[Ring]
"""One part of a mask: its outline, then its holes."""


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
    part: int  # number of the part it belongs to, from 0
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
    parents = tree[0][:, 3]
    parts = np.where(parents < 0, np.arange(len(parents)), parents).tolist()
    loops = [
        Loop(loop if part == own else np.concatenate((loop[:1], loop[:0:-1])), part, part != own)
        for own, (loop, part) in enumerate(zip(np.split(points, starts[1:]), parts, strict=True))
    ]
    return [loops[number] for number in np.lexsort(points[starts].T)]


def inset_points(loop: Loop) -> Ring:
    """The points of a loop, with every line moved a quarter of a pixel to the side of the foreground.

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
    return points + np.stack((across, along), axis=1)


def polygons_of(
    mask: MaskWindow, tolerance: float = 0, read: Callable[[list[Part]], MaskWindow] | None = None
) -> list[Part]:
    """The parts of a mask as polygons that people can edit, by their topmost, then leftmost point.

    Args:
        mask: the mask; soft values count from 0.5 on.
        tolerance: pixels that a line may be off; 0 gives ``inset_points``, which hold the mask to the pixel. It is
            halved as long as IoU with the mask falls below 0.99, down to the exact outline, which a mask of more than
            500 parts and holes has at once.
        read: how the format that they are written in reads them again; None for ``fill_polygons``.
    """
    loops = outlines(mask)
    while tolerance > 0.1 and len(loops) <= _MOST_LOOPS:
        parts = _parts(loops, [_simplified(loop, tolerance) for loop in loops])
        found = read(parts) if read else fill_polygons([ring for part in parts for ring in part], mask.size)
        if iou(found, mask) >= LEAST_IOU:
            return parts
        tolerance /= 2
    return _parts(loops, [inset_points(loop) for loop in loops])


def joined(rings: Sequence[Ring]) -> Ring:
    """One polygon that holds all rings, which hang together by bridges; 0 points for none.

    A bridge is walked there and back and so encloses nothing. It leads from a ring to the nearest point of those
    before.
    """
    if len(rings) < 2:
        return rings[0] if rings else np.zeros((0, 2))
    points, starts = np.concatenate(rings), np.cumsum([0, *map(len, rings)])
    follows = np.arange(1, len(points) + 1)
    follows[starts[1:] - 1] = starts[:-1]
    after, walked = (
        follows.tolist(),
        list(range(len(points))),
    )  # the point that a place in the walk stands for
    for start, end in zip(starts[1:-1].tolist(), starts[2:].tolist(), strict=True):
        first = max(0, start - _BRIDGE_WINDOW)
        foot = first + int(np.square(points[first:start] - points[start]).sum(axis=1).argmin())
        near = start + int(np.square(points[start:end] - points[foot]).sum(axis=1).argmin())
        before, here = near - 1 if near > start else end - 1, len(after)
        walked += [near, foot]
        after += [here + 1, after[foot]]  # back at the near point, then at the foot, then on
        after[foot], after[before] = near, here
    walk = [0]
    while at := after[walk[-1]]:
        walk.append(at)
    return points[[walked[at] for at in walk]]


def _parts(loops: Sequence[Loop], rings: Sequence[Ring]) -> list[Part]:
    """Rings by the part they belong to; an outline comes before its holes, for its first point is above theirs."""
    found: dict[int, Part] = {}
    for loop, ring in zip(loops, rings, strict=True):
        found.setdefault(loop.part, []).append(ring)
    return list(found.values())


def _simplified(loop: Loop, tolerance: float) -> Ring:
    """A loop with fewer points, around the same area.

    Steps are cut through the middle of their edges, which leaves every pixel centre on its side; Douglas and Peucker's
    method takes points out of that line. Then it is moved as a whole so far that it has the area again.
    """
    import cv2  # here, because listing the formats must not wait for it

    corners = loop.points.astype(np.float64)
    steps = np.roll(corners, -1, axis=0) - corners
    lengths = np.abs(steps).sum(axis=1)
    ways = steps / lengths[:, None]
    came = np.roll(ways, 1, axis=0)
    turns = came[:, 0] * ways[:, 1] - came[:, 1] * ways[:, 0]  # 1 or -1 at each corner
    # the middle of an edge; an edge whose ends turn one way is the end of a slope, and keeps its length
    is_end = (turns == np.roll(turns, -1)) & (lengths > 1)
    back = np.where(is_end, 0.5, lengths / 2)[:, None] * ways
    halves = np.stack((corners + back, np.roll(corners, -1, axis=0) - back), axis=1)  # [edges, 2, xy]
    meant = (lengths >= _CORNER) & (np.roll(lengths, 1) >= _CORNER)
    halves[meant, 0] = corners[meant]
    halves[np.roll(meant, -1), 1] = np.roll(corners, -1, axis=0)[np.roll(meant, -1)]
    origin = corners.min(axis=0)
    line = (halves.reshape(-1, 2) - origin).astype(np.float32)
    ring = cv2.approxPolyDP(line, tolerance, True).reshape(-1, 2).astype(np.float64)
    if len(ring) < 3:
        return inset_points(loop)
    edges = np.roll(ring, -1, axis=0) - ring
    sides = np.hypot(*edges.T)
    normals = np.stack((edges[:, 1], -edges[:, 0]), axis=1) / sides[:, None]
    lacking = _signed_area(corners - origin) - _signed_area(ring)
    before = np.roll(normals, 1, axis=0)
    mitre = (before + normals) / np.maximum(1 + (before * normals).sum(axis=1), 0.5)[:, None]
    return np.round(ring + mitre * (lacking / sides.sum()) + origin, 2)


def _signed_area(ring: Ring) -> float:
    """In pixels; positive where the inside is to the right of the way, with y downwards."""
    after = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * after[:, 1] - after[:, 0] * ring[:, 1]).sum() / 2)


def iou(found: MaskWindow, mask: MaskWindow) -> float:
    """Intersection over union of a bool mask and another one; 1 for two empty ones."""
    either = union([found, mask.hard()], mask.size).area
    return (found.area + mask.area - either) / either if either else 1.0


def coco_polygons(mask: Mask, tolerance: float = 0) -> list[list[float]]:
    """A mask as COCO's list of polygons, one a part, with its holes on bridges; [] for an empty mask."""

    def values(parts: list[Part]) -> list[list[float]]:
        return [joined(part).ravel().tolist() for part in parts]

    def read(parts: list[Part]) -> MaskWindow:
        return mask_from_segmentation(values(parts), lambda: mask.size).decode()

    return values(polygons_of(mask.decode(), tolerance, read))
