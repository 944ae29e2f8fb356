"""COCO's ``segmentation`` of any kind as a mask: compressed RLE, uncompressed RLE or polygons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError, NoMaskError, counted, short
from transfiner_refine.formats.json_stream import whole
from transfiner_refine.masks import Box, Mask, check_size

__all__ = [
    "MAX_OUTLINE",
    "SLACK",
    "contradiction",
    "mask_from_segmentation",
    "masks_from_segmentations",
    "with_area",
]

# pixels of polygon outline; pycocotools walks it in fifths of a pixel, about 120 bytes each
MAX_OUTLINE = 4_000_000
_LONGEST_SIDE = 1 << 27  # of an image that pycocotools draws polygons on, in ints of fifths of a pixel
_FAR = 1e300  # a number beyond it, even a whole one of JSON, is as good as infinite
_CHARACTERS_AT_ONCE = 1 << 18  # of compressed RLEs; parsing takes some hundred bytes for each
_MERGED_AT_ONCE = 16  # polygons; COCO's own masks have fewer
# what tells a mask that contradicts its record from sloppiness, see ``contradiction``
SLACK = 2  # pixels
_OUTSIDE, _FAR_OUTSIDE = (
    0.05,
    0.02,
)  # share of polygons outside the image; how far, in shares of its longer side
_INSIDE = 0.8  # share of a mask's pixels inside the stated box
_BOX_IOU = 0.3  # of the mask's box and the stated one, where these are drawn around masks
_AREAS = 3  # how often one area may hold the other
_FEWEST_PIXELS = 16  # of a mask whose box says something


def masks_from_segmentations(
    segmentations: Sequence[object], image_size: Callable[[], tuple[int, int]]
) -> list[Mask | InputError]:
    """Many masks, or what is wrong with them, as ``mask_from_segmentation`` gives them; RLEs are parsed together."""
    found: dict[int, Mask | InputError] = {}
    known: dict[int, tuple[tuple[int, int], str]] = {}
    for position, value in enumerate(segmentations):
        if isinstance(value, dict) and isinstance(counts := value.get("counts"), str) and counts:
            with suppress(InputError):
                known[position] = _rle_size(value.get("size")), counts
    positions = list(known)
    lots = np.cumsum([len(counts) for _, counts in known.values()]) // _CHARACTERS_AT_ONCE
    for lot in np.unique(lots):
        together = [positions[i] for i in np.flatnonzero(lots == lot)]
        with suppress(InputError):  # one of them is damaged; below each is parsed alone
            found |= zip(together, Mask.parsed([known[position] for position in together]), strict=True)
    for position, value in enumerate(segmentations):
        if position not in found:
            try:
                found[position] = mask_from_segmentation(value, image_size)
            except InputError as error:
                found[position] = error
    return [found[position] for position in range(len(segmentations))]


def mask_from_segmentation(segmentation: object, image_size: Callable[[], tuple[int, int]]) -> Mask:
    """The mask of a COCO ``segmentation``: compressed RLE, uncompressed RLE or a list of polygons.

    ``segmentation`` is the value as the JSON has it; counts may also be bytes, as pycocotools returns them.
    ``image_size`` gives (height, width) of the image, pixels; it is asked only for polygons.

    Raises:
        InputError: it is none of the three, or damaged.
    """
    if isinstance(segmentation, dict):
        size, counts = _rle_size(segmentation.get("size")), segmentation.get("counts")
        if isinstance(counts, bytes):
            counts = counts.decode("latin-1")  # never fails; foreign characters are refused below
        if isinstance(counts, str):
            return Mask(size, counts)
        if isinstance(counts, (list, tuple)):
            return Mask.from_runs(counts, size)
        raise InputError(f"the RLE's counts are {short(counts)}, neither text nor a list of runs")
    if isinstance(segmentation, list):
        return _mask_from_polygons(segmentation, image_size())
    kind = NoMaskError if segmentation is None else InputError
    raise kind(
        f"the segmentation is {short(segmentation)}, neither an RLE nor a list of polygons",
        remedy="write masks into the file (boxes alone cannot be refined)",
    )


def _rle_size(size: object) -> tuple[int, int]:
    if isinstance(size, (list, tuple)) and len(size) == 2:
        height, width = whole(size[0]), whole(size[1])
        if height is not None and width is not None:
            return height, width
    raise InputError(f"the RLE's size is {short(size)}, not [height, width] in pixels")


def with_area(polygons: list[Any]) -> list[Any]:
    """Polygons without those of fewer than three points or of points on one line, unless all are so.

    These hold no pixel; labelling tools leave them behind.
    """
    return [polygon for polygon in polygons if not _is_degenerate(polygon)] or polygons


def _is_degenerate(polygon: object) -> bool:
    if not isinstance(polygon, list) or len(polygon) % 2:
        return False
    if len(polygon) > 4 and polygon[:2] != polygon[2:4] != polygon[4:6] != polygon[:2]:
        (x0, y0), (x1, y1), (x2, y2) = polygon[:2], polygon[2:4], polygon[4:6]
        try:
            if (x1 - x0) * (y2 - y0) != (x2 - x0) * (y1 - y0):
                return False  # as nearly always
        except (TypeError, OverflowError):
            return False
    if any(type(number) not in (int, float) or not abs(number) < _LONGEST_SIDE for number in polygon):
        return False
    if len(polygon) < 6:
        return True
    points = np.asarray(polygon, np.float64).reshape(-1, 2)  # [points, xy]
    (x, y), (dx, dy) = (points - points[0]).T, points[np.abs(points - points[0]).sum(1).argmax()] - points[0]
    return bool((x * dy == y * dx).all())


def _mask_from_polygons(polygons: list[object], size: tuple[int, int]) -> Mask:
    check_size(size)
    height, width = size
    if max(size) > _LONGEST_SIDE:
        raise InputError(f"the image is {height}×{width}, too long for polygons", remedy="write RLE masks")
    if not polygons:
        return Mask.from_runs([height * width], size)
    outline = 0.0
    drawable = with_area(polygons)
    for position, polygon in enumerate(polygons):
        if len(drawable) < len(polygons) and _is_degenerate(polygon):
            continue
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            # four numbers would be taken for a box by pycocotools
            what = "not a list x, y, x, y, ... of three or more points"
            raise InputError(f"polygon {position} is {short(polygon)}, {what}")
        if any(type(number) not in (int, float) or not abs(number) < _FAR for number in polygon):
            raise InputError(f"polygon {position} has a coordinate that is not a finite number")
        points = np.asarray(polygon, np.float64).reshape(-1, 2)  # [points, xy]
        beyond = np.maximum(-points, points - (width, height))
        if (beyond > max(height, width)).any():
            x, y = points[int(beyond.max(1).argmax())]
            what = f"the point ({x:g}, {y:g}), far outside its {width}×{height} image"
            raise InputError(f"polygon {position} has {what}")
        outline += float(np.abs(points - np.roll(points, 1, 0)).max(1).sum())
    if outline > MAX_OUTLINE:
        what = f"{outline:.0f} pixels long, more than the {MAX_OUTLINE} allowed"
        raise InputError(f"the polygons' outline is {what}")
    from pycocotools import mask as coco_mask  # here, because most files hold no polygons

    drawn = coco_mask.frPyObjects(drawable, height, width)
    while len(drawn) > 1:  # a few at a time: one merge of all would walk the union anew for each polygon
        lots = range(0, len(drawn), _MERGED_AT_ONCE)
        drawn = [coco_mask.merge(drawn[first : first + _MERGED_AT_ONCE]) for first in lots]
    return Mask(size, drawn[0]["counts"].decode("ascii"))


def contradiction(
    record: Mapping[str, Any], mask: Mask, size: Callable[[], tuple[int, int]], *, is_exact: bool
) -> str | None:
    """Why a mask has nothing to do with what its record says beside it; None where nothing speaks against it.

    ``size`` gives (height, width) of the image, for polygons. ``is_exact``: the boxes of these records are drawn
    around their masks, as in annotations; those of detectors may be far larger. None of the 30,000 records of the
    data sets that this was measured on comes near a limit, while masks read row by row, polygons of another scale and
    of a turned image do in nine of ten cases.
    """
    segmentation = record.get("segmentation")
    polygons = with_area(segmentation) if isinstance(segmentation, list) else []
    if polygons and (reason := _beyond(polygons, size())) is not None:
        return reason
    box = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(type(each) in (int, float) for each in box):
        box = [0, 0, 0, 0]
    x, y, width, height = (min(max(each, -_FAR), _FAR) for each in box)
    if mask.area < _FEWEST_PIXELS or not (width > 0 and height > 0):
        return _other_area(record, mask)
    stated, found = (x, y, x + width, y + height), mask.box
    if _share_inside(mask, stated) >= _INSIDE and (not is_exact or _box_iou(stated, found) >= _BOX_IOU):
        return None
    drawn = [found[0], found[1], found[2] - found[0], found[3] - found[1]]
    return f"the box of its mask is {drawn} (x, y, width, height), but bbox says {short(box)}"


def reach(polygons: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The smallest coordinate of sound polygons, and the largest x and y; pixels."""
    sides = ((min(each), max(each[::2]), max(each[1::2])) for each in polygons)
    low, right, bottom = zip(*sides, strict=True)
    return min(low), max(right), max(bottom)


def _beyond(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> str | None:
    (height, width), (low, right, bottom) = size, reach(polygons)
    are_shares = low >= 0 and max(right, bottom) <= 1 and max(size) > SLACK
    if are_shares and any(number % 1 for polygon in polygons for number in polygon):
        return "its polygons lie between 0 and 1, as if in shares of the image and not in pixels"
    slack = max(SLACK, _FAR_OUTSIDE * max(size))
    if low >= -slack and right <= width + slack and bottom <= height + slack:
        return None
    drawn = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons]
    areas = [(_area(polygon), _area(_clipped(polygon, size))) for polygon in drawn]
    whole_area, inside = map(sum, zip(*areas, strict=True))
    if inside >= (1 - _OUTSIDE) * whole_area:
        return None
    return f"{1 - inside / whole_area:.0%} of its polygons lie outside its {width}×{height} image"


def _area(polygon: NDArray[np.float64]) -> float:
    (x, y), (next_x, next_y) = polygon.T, np.roll(polygon, -1, 0).T
    return abs(float((x * next_y - next_x * y).sum())) / 2


def _clipped(polygon: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """What of a polygon lies in the image (Sutherland and Hodgman, 1974)."""
    for axis, bound, sign in ((0, 0, 1), (0, size[1], -1), (1, 0, 1), (1, size[0], -1)):
        depth, following = sign * (polygon[:, axis] - bound), np.roll(polygon, -1, 0)
        crosses = (depth < 0) != (np.roll(depth, -1) < 0)
        step = np.divide(depth, depth - np.roll(depth, -1), out=np.zeros_like(depth), where=crosses)
        both = np.stack((polygon, polygon + step[:, None] * (following - polygon)), 1)
        polygon = both[np.stack((depth >= 0, crosses), 1)]
    return polygon


def _share_inside(mask: Mask, box: tuple[float, float, float, float]) -> float:
    """The share of a mask's pixels that lie in a box or near it."""
    x0, y0, x1, y1 = mask.box
    left, top, right, bottom = box[0] - SLACK, box[1] - SLACK, box[2] + SLACK, box[3] + SLACK
    if left <= x0 and top <= y0 and right >= x1 and bottom >= y1:
        return 1.0
    rows, columns = np.arange(y0, y1), np.arange(x0, x1)
    inside = np.ix_((rows >= top) & (rows < bottom), (columns >= left) & (columns < right))
    return float(np.count_nonzero(mask.decode().values[inside])) / mask.area


def _box_iou(a: tuple[float, float, float, float], b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return common / (areas - common)


def _other_area(record: Mapping[str, Any], mask: Mask) -> str | None:
    """As ``contradiction``, by the area alone; that of the box, which some tools write, is as good."""
    area, (x0, y0, x1, y1) = record.get("area"), mask.box
    if not mask.area or not isinstance(area, (int, float)) or not _FEWEST_PIXELS <= area < _FAR:
        return None
    if mask.area / _AREAS <= area <= max((x1 - x0) * (y1 - y0), _FEWEST_PIXELS) * _AREAS:
        return None
    return f"its mask has {counted(mask.area, 'pixel')}, but area says {short(area)}"
