"""Masks to polygons along the edges of their pixels, exact by the rule of ``polygon.fill_polygons``.

Pixels that touch at a corner belong together, as in OpenCV's contours, so no more polygons come out than a person
would see parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.masks import MaskWindow

__all__ = ["Loop", "inset_points", "joined_outline", "outlines"]

_INSET = 0.25  # pixels; under the half that decides, and far above what is lost in text of six digits


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
