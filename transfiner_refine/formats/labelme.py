"""labelme: a JSON file for each image, with the shapes that somebody drew.

    labels/street.json                     {"shapes": [...], "imagePath": "street.jpg", "imageHeight": ..., ...}

Polygons, rectangles, circles and masks are areas; those of one label and one ``group_id`` are one instance. Points
and lines pass through. The image is found in ``--images`` by the name in ``imagePath`` (its folders do not count, for
they are those of another machine), else by the name of the JSON file; an image inside the JSON (``imageData``) stays
there.

A refined instance stands where its first shape stood and keeps that shape's other keys: a mask stays a mask, all else
becomes a polygon for each part, all in one group, with holes on bridges. The file is edited in place: every other byte
stays.

Written from other formats: one JSON an image without ``imageData``, masks where there are holes, else polygons; a score
as key "score", a crowd as flag "iscrowd".
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.annotation_files import (
    NO_CLASS,
    Drawn,
    JsonTool,
    NewInstance,
    Picture,
    areas_of,
    format_of,
    plain,
    score_of,
)
from transfiner_refine.formats.areas import Area, ellipse, pasted_png, png_of, points_of
from transfiner_refine.formats.folders import first_files, start_of
from transfiner_refine.formats.json_stream import whole
from transfiner_refine.formats.polygons import fill_polygons, joined, polygons_of
from transfiner_refine.masks import MaskWindow

_VERSION = "5.5.0"  # of the layout; the first releases with mask shapes were of 5.3
_CROWD = "iscrowd"
_LOOKED_AT = 1 << 20  # bytes; an image inside the file may come before the shapes
_FEWEST_POINTS = {"polygon": 3, "rectangle": 2, "oriented_rectangle": 4, "circle": 2, "mask": 2}  # of areas


class _Labelme(JsonTool):
    name = "labelme"

    def recognise(self, path: Path) -> bool:
        """A folder of JSON files; half of the first ones at least speak of shapes."""
        found = [b'"shapes"' in start_of(file, _LOOKED_AT) for file in first_files(path, ".json")]
        return any(found) and 2 * sum(found) >= len(found)

    def read(self, document: Any) -> list[Picture]:
        if not isinstance(document, dict) or not isinstance(shapes := document.get("shapes"), list):
            raise InputError("has no list of shapes", remedy="give files that labelme has written")
        height, width = whole(document.get("imageHeight")) or 0, whole(document.get("imageWidth")) or 0
        name = document.get("imagePath")
        size = (height, width) if height > 0 and width > 0 else None
        return [Picture(name if isinstance(name, str) else "", size, _instances_of(shapes))]

    def first_group(self, document: Any) -> int:
        groups = [whole(shape.get("group_id")) for shape in document["shapes"] if isinstance(shape, dict)]
        return max([0, *(group for group in groups if group is not None)]) + 1

    def shapes(
        self, mask: MaskWindow, old: Mapping[str, Any], tolerance: float, group: int
    ) -> list[dict[str, Any]]:
        if _kind(old) == "mask":
            return [_as_mask(mask)]
        return _as_polygons(mask, old, tolerance, group)

    def new_image(
        self, name: str, size: tuple[int, int], found: Sequence[NewInstance], tolerance: float
    ) -> dict[str, Any]:
        shapes: list[dict[str, Any]] = []
        for group, (mask, label, score, is_crowd) in enumerate(found, 1):
            flags = {_CROWD: True} if is_crowd else {}
            shape: dict[str, Any] = {"label": label, "points": [], "group_id": None, "description": ""}
            shape |= {"shape_type": "", "flags": flags, "mask": None}
            if score is not None:
                shape["score"] = score
            has_holes = any(len(part) > 1 for part in polygons_of(mask))
            made = [_as_mask(mask)] if has_holes else _as_polygons(mask, shape, tolerance, group)
            shapes += [shape | change for change in made]
        return {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": PurePosixPath(name).name,
            "imageData": None,
            "imageHeight": size[0],
            "imageWidth": size[1],
        }


def _instances_of(shapes: list[Any]) -> list[Drawn]:
    groups: dict[tuple[str, str, Any], list[int]] = {}
    for place, shape in enumerate(shapes):
        if isinstance(shape, dict) and _kind(shape) in _FEWEST_POINTS:
            group_id = shape.get("group_id")
            # a shape without group is an instance of its own, hence its place; 1, 1.0 and "1" are one group
            is_group = type(group_id) in (int, float, str)
            number = whole(group_id)
            group = ("group", group_id if number is None else number) if is_group else ("place", place)
            groups.setdefault((str(shape.get("label", NO_CLASS)), *group), []).append(place)
    instances = []
    for (label, *_), places in groups.items():
        areas = areas_of(_area, *(shapes[place] for place in places))
        first = shapes[places[0]]
        score, flags = score_of(first.get("score")), first.get("flags")
        crowd = isinstance(flags, dict) and flags.get(_CROWD) is True
        record = f"shape {places[0]} ({label})"
        instances.append(Drawn(record, [("shapes", place) for place in places], areas, label, score, crowd))
    return instances


def _kind(shape: Mapping[str, Any]) -> str:
    kind = shape.get("shape_type", "polygon")  # the first versions had polygons only and did not say so
    return kind if isinstance(kind, str) else "polygon" if kind is None else ""


def _area(shape: dict[str, Any]) -> Area:
    """A shape, checked."""
    kind, picture = _kind(plain(shape)), shape.get("mask")
    points = points_of(shape.get("points"), _FEWEST_POINTS[kind], kind)
    if kind == "mask":
        if not isinstance(picture, str):
            raise InputError("a shape of type mask has no mask", remedy="draw the shape again")
        return partial(_pasted, picture, points[0])
    if kind == "circle":
        return partial(ellipse, points[0], np.full(2, math.hypot(*(points[1] - points[0]))), 0.0)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points[:2]
        points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    return partial(fill_polygons, [points])


def _pasted(picture: str, corner: NDArray[np.float64], size: tuple[int, int]) -> MaskWindow:
    try:
        data = base64.b64decode(picture)
    except ValueError as error:
        raise InputError(f"its mask is no PNG ({error})", remedy="draw the shape again") from None
    return pasted_png(data, corner, size)


def _as_mask(mask: MaskWindow) -> dict[str, Any]:
    mask = mask.tight()
    x0, y0, x1, y1 = map(float, mask.box)
    picture = base64.b64encode(png_of(mask)).decode("ascii")
    return {"points": [[x0, y0], [x1 - 1, y1 - 1]], "shape_type": "mask", "mask": picture}


def _as_polygons(
    mask: MaskWindow, old: Mapping[str, Any], tolerance: float, group: int
) -> list[dict[str, Any]]:
    """Changes that make a shape the parts of a mask; several get a group, if the shape has none.

    Without a tolerance, lines run a quarter of a pixel inside the edges of the pixels, so that labelme's own export
    paints these pixels and no more.
    """
    parts = polygons_of(mask, tolerance)
    more: dict[str, Any] = {"mask": None} if "mask" in old else {}
    if len(parts) > 1 and old.get("group_id") is None:
        more["group_id"] = group
    return [{"points": joined(part).tolist(), "shape_type": "polygon"} | more for part in parts]


LABELME = format_of(_Labelme())
