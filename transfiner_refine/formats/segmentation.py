"""COCO's ``segmentation`` of any kind as a mask: compressed RLE, uncompressed RLE or polygons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from transfiner_refine.errors import InputError, NoMaskError, short
from transfiner_refine.formats.json_stream import whole
from transfiner_refine.masks import Mask, check_size

__all__ = ["MAX_OUTLINE", "mask_from_segmentation", "masks_from_segmentations"]

# pixels of polygon outline; pycocotools walks it in fifths of a pixel, about 120 bytes each
MAX_OUTLINE = 4_000_000
_LONGEST_SIDE = 1 << 27  # of an image that pycocotools draws polygons on, in ints of fifths of a pixel
_FAR = 1e300  # a number beyond it, even a whole one of JSON, is as good as infinite
_CHARACTERS_AT_ONCE = 1 << 18  # of compressed RLEs; parsing takes some hundred bytes for each
_MERGED_AT_ONCE = 16  # polygons; COCO's own masks have fewer


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


def _is_short(polygon: object) -> bool:
    """Whether a polygon is one of fewer than three points."""
    if not isinstance(polygon, list) or len(polygon) not in (0, 2, 4):
        return False
    return all(type(number) in (int, float) for number in polygon)


def _mask_from_polygons(polygons: list[object], size: tuple[int, int]) -> Mask:
    check_size(size)
    height, width = size
    if max(size) > _LONGEST_SIDE:
        raise InputError(f"the image is {height}×{width}, too long for polygons", remedy="write RLE masks")
    if not polygons:
        return Mask.from_runs([height * width], size)
    outline = 0.0
    drawable = [polygon for polygon in polygons if not _is_short(polygon)]
    for position, polygon in enumerate(polygons):
        if drawable and _is_short(polygon):
            continue  # it holds no pixel, and labelling tools leave such pieces behind
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
