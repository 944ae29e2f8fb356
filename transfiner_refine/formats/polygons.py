"""Polygons to masks. The rule: a pixel belongs to a polygon if its centre lies inside (even-odd).

Pixel (row 0, column 0) covers [0, 1] × [0, 1], so its centre is (0.5, 0.5), and a polygon along the edges of pixels
gives exactly these pixels back (``outlines`` gives such). Points that people click, and polygons in COCO's
manner, are of this frame too.

Contours as OpenCV's ``findContours`` draws them are of another: their points name pixels, so a contour from 2 to 5
means the pixels 2, 3, 4 and 5 and not the interval [2, 5]. Read by the rule above such masks would lose their last row
and column. ``is_pixel_contour`` knows them by their steps, and ``fill_contour`` reads them to the pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.segmentation import MAX_OUTLINE
from transfiner_refine.masks import MAX_PIXELS, MaskWindow

__all__ = [
    "Loop",
    "fill_contour",
    "fill_polygons",
    "inset_points",
    "is_pixel_contour",
    "joined_outline",
    "outlines",
]

_INSET = 0.25  # pixels; under the half that decides, and far above what is lost in text of six digits

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


@dataclass(frozen=True)
class Loop:
    """One closed outline.

    Attributes:
        points: [points, xy] int64, pixels in the image, only where the outline turns; the first is the leftmost of
            the topmost, and the second lies below it.
        is_hole: background lies inside.
    """

    points: NDArray[np.int64]
    is_hole: bool


def outlines(mask: MaskWindow) -> list[Loop]:
    """The outlines of a bool mask: parts and holes, by their topmost, then leftmost point."""
    height, width = mask.values.shape
    framed = np.zeros((height + 2, width + 2), bool)
    framed[1:-1, 1:-1] = mask.values
    # on the lattice of pixel corners: is there an outline to the right of a corner, and below it?
    right = framed[:-1] != framed[1:]  # [H + 1, W + 2]: between a pixel and the one below
    below = framed[:, :-1] != framed[:, 1:]  # [H + 2, W + 1]: between a pixel and the one to the right
    from_left, to_right = right[:, :-1], right[:, 1:]  # [H + 1, W + 1]
    from_above, to_below = below[:-1], below[1:]
    turns = (from_left != to_right) | (
        from_left & from_above
    )  # the latter where two pixels touch at a corner
    y, x = np.nonzero(turns)
    crossing = (from_left & to_right & from_above & to_below)[y, x]
    # a corner where pixels touch is two turns: one ends the line from the left, one begins that to the right
    y, x, crossing = (np.repeat(values, 1 + crossing) for values in (y, x, crossing))
    second = np.zeros(len(y), bool)
    second[1:] = crossing[1:] & crossing[:-1] & (y[1:] == y[:-1]) & (x[1:] == x[:-1])
    # in a row, turns 0 and 1 are joined by a line, 2 and 3, and so on; in a column likewise, for which the two turns
    # of a touching corner must be in the order in which the column meets their lines
    falling = framed[:-1, :-1][y, x]  # the touching pixels are the upper left and the lower right one
    meets_upper_line = np.where(crossing, second == falling, False)
    in_columns = np.lexsort((np.where(crossing, ~meets_upper_line, False), y, x))
    vertical = np.empty(len(y), np.int64)
    vertical[in_columns[0::2]], vertical[in_columns[1::2]] = in_columns[1::2], in_columns[0::2]
    loops = []
    partner, done = vertical.tolist(), [False] * len(y)
    corners = np.stack((x + mask.x, y + mask.y), axis=1).astype(np.int64)
    for start in range(len(done)):
        if done[start]:
            continue
        walk, at = [], start
        while not done[at]:
            down = partner[at]
            done[at] = done[down] = True
            walk += [at, down]
            at = down ^ 1  # along the row: 2k and 2k + 1 are partners
        # the first turn is the upper left corner of a pixel inside the loop
        is_hole = not framed[y[start] + 1, x[start] + 1]
        loops.append(Loop(corners[walk], bool(is_hole)))
    return loops


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

    Its lines are those of ``inset_points``.

    Parts and holes hang together by bridges that are walked there and back and so enclose nothing. A bridge leads
    from the top of a part or hole to the left until it meets another outline; where there is none, it leads to the
    part before. All lines are horizontal or vertical.
    """
    loops = outlines(mask)
    if not loops:
        return np.zeros((0, 2))
    drawn = [inset_points(loop) for loop in loops]
    anchors = _anchors(mask, loops)
    children: dict[tuple[int, int], list[tuple[float, int]]] = {}  # (loop, edge) → (y, child)
    for child, (parent, edge) in anchors.items():
        children.setdefault((parent, edge), []).append((drawn[child][0][1], child))
    points: list[tuple[float, float]] = []
    # what is left to do: (loop, edge to go on with); bridges back are points
    waiting: list[tuple[int, int] | list[tuple[float, float]]] = [(0, 0)]
    while waiting:
        task = waiting.pop()
        if isinstance(task, list):
            points += task
            continue
        loop, edge = task
        corners = drawn[loop]
        if edge == len(corners):
            points.append(corners[0])
            continue
        waiting.append((loop, edge + 2))  # edges 0, 2, 4 ... are the vertical ones
        (x0, y0), (x1, y1) = corners[edge], corners[edge + 1]
        points.append((x0, y0))
        waiting.append([(x1, y1)])
        ways = sorted(children.get((loop, edge), ()), reverse=y1 < y0)
        for y, child in reversed(ways):
            foot = (x0, y)
            waiting.append([foot])
            waiting.append((child, 0))
            waiting.append([foot])
    return np.array(points[:-1])  # the last is the first


def _anchors(mask: MaskWindow, loops: list[Loop]) -> dict[int, tuple[int, int]]:
    """For each loop but the first: (loop, vertical edge) that its bridge to the left meets.

    That is always a loop before it: a line that reaches the row of a loop's first point, and lies to the left of it,
    begins above or to the left.
    """
    first = [loop.points[0::2] for loop in loops]
    second = [loop.points[1::2] for loop in loops]
    x = np.concatenate([ends[:, 0] for ends in first])
    top = np.concatenate([np.minimum(a[:, 1], b[:, 1]) for a, b in zip(first, second, strict=True)])
    owner = np.concatenate([np.full(len(ends), number) for number, ends in enumerate(first)])
    edge = np.concatenate([2 * np.arange(len(ends)) for ends in first])
    order = np.lexsort((top, x))
    scale = mask.image_size[0] + 1
    keys = (x * scale + top)[order]
    framed = np.pad(mask.values, 1)
    lines = framed[:, :-1] != framed[:, 1:]  # [h + 2, w + 1]: vertical lines by row of pixels
    anchors: dict[int, tuple[int, int]] = {}
    row, columns = -1, np.zeros(0, np.int64)
    for number, loop in enumerate(loops[1:], 1):
        here_x, here_y = loop.points[0].tolist()
        if here_y != row:  # loops come by row
            row, at = here_y, here_y - mask.y
            columns = np.flatnonzero(lines[at] | lines[at + 1]) + mask.x
        met = int(np.searchsorted(columns, here_x)) - 1
        if met < 0:
            anchors[number] = (number - 1, 0)
        else:
            found = order[int(np.searchsorted(keys, columns[met] * scale + here_y, side="right")) - 1]
            anchors[number] = (int(owner[found]), int(edge[found]))
    return anchors
