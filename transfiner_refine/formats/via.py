"""VIA (VGG Image Annotator), versions 1 and 2: a project or annotations as JSON, or annotations as CSV.

    {"_via_img_metadata": {"street.jpg4523": {"filename": "street.jpg", "regions": [
        {"shape_attributes": {"name": "polygon", "all_points_x": [...], "all_points_y": [...]},
         "region_attributes": {"label": "cup"}}]}}}

Polygons, rectangles, circles and ellipses are areas; points and lines pass through. A class is the region attribute
``label``, ``class``, ``name``, ``type`` or ``category``, else the only one. Sizes come from the images, so these are
needed.

A refined region becomes a polygon, which holds several parts and holes on bridges; every other byte of the file stays.

Written from other formats: annotations as JSON. There is no place for crowds; a score is a region attribute.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError, short
from transfiner_refine.formats.annotation_files import (
    Drawn,
    JsonTool,
    NewInstance,
    Picture,
    Tool,
    areas_of,
    format_of,
    plain,
)
from transfiner_refine.formats.areas import Area, ellipse, points_of
from transfiner_refine.formats.folders import start_of
from transfiner_refine.formats.json_stream import compact, edited, parse
from transfiner_refine.formats.polygons import fill_polygons, joined, polygons_of
from transfiner_refine.masks import MaskWindow

_LOOKED_AT = 1 << 20  # bytes; a project begins with its settings
_METADATA = "_via_img_metadata"
_CLASS_KEYS = ("label", "class", "name", "type", "category")
_SCORE = "score"
_NUMBERS = {  # of shapes that are areas
    "rect": ("x", "y", "width", "height"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry"),
}
_COLUMNS = ("filename", "region_id", "region_shape_attributes", "region_attributes")
_FIELD = re.compile(r'("(?:[^"]|"")*"|[^,"\r\n]*)(,|\r?\n|\r|$)')


class _Via(JsonTool):
    name = "via"
    one_file = True
    holds_crowds = False

    def recognise(self, path: Path) -> bool:
        start = start_of(path, _LOOKED_AT).removeprefix(b"\xef\xbb\xbf").lstrip()
        return start.startswith(b"{") and (_METADATA.encode() in start or b'"file_attributes"' in start)

    def read(self, document: Any) -> list[Picture]:
        root: tuple[str, ...] = (_METADATA,) if isinstance(document, dict) and _METADATA in document else ()
        images = plain(document[_METADATA] if root else document, dict)
        return [_picture((*root, key), image) for key, image in images.items()]

    def shapes(self, mask: MaskWindow, _old: Any, tolerance: float, _group: int) -> list[str]:
        return [json.dumps(_polygon(mask, tolerance))]

    def new_image(
        self, name: str, _size: tuple[int, int], found: Sequence[NewInstance], tolerance: float
    ) -> tuple[str, dict[str, Any]]:
        regions = [
            {
                "shape_attributes": _polygon(mask, tolerance),
                "region_attributes": {"label": label} | ({} if score is None else {_SCORE: repr(score)}),
            }
            for mask, label, score, _ in found
        ]
        # VIA's own key ends in the size of the image file in bytes, which need not be known
        return f"{name}-1", {"filename": name, "size": -1, "regions": regions, "file_attributes": {}}

    def new_text(self, images: Sequence[Any], _labels: Sequence[str]) -> str:
        return json.dumps(dict(images), ensure_ascii=False)


class _ViaCsv(Tool):
    name = "via-csv"
    ending = ".csv"
    one_file = True
    holds_crowds = False

    def recognise(self, path: Path) -> bool:
        start = start_of(path, _LOOKED_AT).removeprefix(b"\xef\xbb\xbf")
        return b"region_shape_attributes" in start.partition(b"\n")[0]

    def pictures(self, text: str) -> list[Picture]:
        images: dict[str, list[Drawn]] = {}
        for at, (row, _) in _rows(text):
            drawn = images.setdefault(row["filename"], [])
            try:
                shape = plain(parse(row["region_shape_attributes"] or "{}"), dict)
                attributes = plain(parse(row["region_attributes"] or "{}"), dict)
            except InputError as error:
                drawn.append(Drawn(f"region {row['region_id']}", [at], error))
                continue
            drawn += _instance(f"region {row['region_id']}", at, shape, attributes)
        return [Picture(name, None, drawn) for name, drawn in images.items()]

    def rewritten(self, text: str, refined: Sequence[tuple[Drawn, MaskWindow]], tolerance: float) -> str:
        places, edits = [span for _, (_, span) in _rows(text)], []
        for drawn, mask in refined:
            if mask.area:
                value = compact(_polygon(mask, tolerance)).replace('"', '""')
                edits.append((*places[drawn.places[0]], f'"{value}"'))
        return edited(text, sorted(edits))

    def new_image(
        self, name: str, size: tuple[int, int], found: Sequence[NewInstance], tolerance: float
    ) -> list[list[Any]]:
        _, image = _Via().new_image(name, size, found, tolerance)
        regions = image["regions"]
        return [
            [name, -1, "{}", len(regions), number, *map(compact, region.values())]
            for number, region in enumerate(regions)
        ] or [[name, -1, "{}", 0, 0, "{}", "{}"]]

    def new_text(self, images: Sequence[Any], _labels: Sequence[str]) -> str:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["filename", "file_size", "file_attributes", "region_count", *_COLUMNS[1:]])
        writer.writerows(chain.from_iterable(images))
        return text.getvalue()


def _rows(text: str) -> Iterator[tuple[int, tuple[dict[str, str], tuple[int, int]]]]:
    """Number of each row of a CSV text, its fields by column, and where its shape is in the text.

    Raises InputError where a row has another number of fields than the header.
    """
    header, number, at = list[str](), 0, 0
    while at < len(text):
        fields, spans, last = list[str](), list[tuple[int, int]](), ","
        while last == ",":
            found = _FIELD.match(text, at)
            if found is None:
                raise InputError(f"row {number} is no CSV", remedy="export it again")
            field, last = found[1], found[2]
            fields.append(field[1:-1].replace('""', '"') if field.startswith('"') else field)
            spans.append(found.span(1))
            at = found.end()
        if not header:
            header = [field.lstrip("#") for field in fields]
            if missing := [column for column in _COLUMNS if column not in header]:
                raise InputError(f"has no column {missing[0]}", remedy="export it again")
        elif any(fields):
            if len(fields) != len(header):
                reason = f"row {number} has {len(fields)} fields, and the header {len(header)}"
                raise InputError(reason, remedy="export it again")
            shape = header.index("region_shape_attributes")
            yield number, (dict(zip(header, fields, strict=True)), spans[shape])
            number += 1


def _picture(place: tuple[str, ...], image: Any) -> Picture:
    drawn = list[Drawn]()
    try:
        name, regions = plain(image, dict).get("filename"), image.get("regions")
        if not isinstance(name, str):
            raise InputError(f"its filename is {short(name)}", remedy="export it again")
        # version 1 has an object in the place of the list
        numbered = plain(regions or {}, dict).items() if not isinstance(regions, list) else enumerate(regions)
        for key, region in numbered:
            where = (*place, "regions", key)
            try:
                shape = plain(plain(region, dict).get("shape_attributes"), dict)
                attributes = plain(region.get("region_attributes") or {}, dict)
            except InputError as error:
                drawn.append(Drawn(f"region {key}", [where], error))
                continue
            drawn += _instance(f"region {key}", (*where, "shape_attributes"), shape, attributes)
    except InputError as error:
        return Picture(f"image {short(place[-1])}", None, [], error)
    return Picture(name, None, drawn)


def _instance(record: str, place: Any, shape: dict[str, Any], attributes: dict[str, Any]) -> list[Drawn]:
    """The instance of a region; none where its shape is no area."""
    kind = shape.get("name")
    if kind not in ("polygon", *_NUMBERS):
        return []
    texts = {
        key: value for key, value in attributes.items() if isinstance(value, str) and value and key != _SCORE
    }
    label = next((texts[key] for key in _CLASS_KEYS if key in texts), None)
    if label is None and len(texts) == 1:
        (label,) = texts.values()
    try:
        score = float(attributes.get(_SCORE, "nan"))
    except (TypeError, ValueError):
        score = math.nan
    return [
        Drawn(
            record,
            [place],
            areas_of(partial(_area, str(kind)), shape),
            label,
            score if math.isfinite(score) else None,
        )
    ]


def _area(kind: str, shape: dict[str, Any]) -> Area:
    if kind == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise InputError("a polygon needs as many x as y", remedy="draw the region again")
        points = points_of([list(point) for point in zip(xs, ys, strict=True)], 3, kind)
        return partial(fill_polygons, [points])
    numbers: NDArray[np.float64] = points_of([[shape.get(name), 0] for name in _NUMBERS[kind]], 1, kind)[:, 0]
    if kind == "rect":
        x, y, width, height = numbers
        corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
        return partial(fill_polygons, [np.array(corners)])
    return partial(ellipse, numbers[:2], np.broadcast_to(numbers[2:], 2), _angle(shape))


def _angle(shape: Mapping[str, Any]) -> float:
    """Of an ellipse, in radians; version 1 has none."""
    theta = shape.get("theta", 0)
    return float(theta) if type(theta) in (int, float) and abs(theta) < 1e3 else 0.0


def _polygon(mask: MaskWindow, tolerance: float) -> dict[str, Any]:
    xs, ys = joined(list(chain.from_iterable(polygons_of(mask, tolerance)))).T.tolist()
    return {"name": "polygon", "all_points_x": xs, "all_points_y": ys}


VIA, VIA_CSV = format_of(_Via()), format_of(_ViaCsv())
