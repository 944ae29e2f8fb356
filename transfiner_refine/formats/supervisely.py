"""Supervisely: a JSON file for each image, with bitmaps and polygons.

    dataset/ann/street.jpg.json            {"size": {"height": ..., "width": ...}, "objects": [
                                               {"classTitle": "cup", "geometryType": "bitmap",
                                                "bitmap": {"data": "eJz...", "origin": [10, 20]}}, ...]}
    dataset/img/street.jpg

Give the project, a data set of it, or the folder ``ann``; with ``--images`` the project, or the folder ``img``. A
bitmap is a packed PNG and its upper left pixel. Points of polygons name pixels, and the line between them belongs to
the polygon, but to the hole where it is one's; a polygon of several parts becomes a bitmap. All else passes through,
and every byte beside refined shapes stays.

Written from other formats: bitmaps, or polygons with a tolerance. There is no place for crowds and scores.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.annotation_files import (
    Drawn,
    JsonTool,
    NewInstance,
    Picture,
    areas_of,
    format_of,
    plain,
)
from transfiner_refine.formats.areas import Area, pasted_png, png_of, points_of
from transfiner_refine.formats.folders import first_files, start_of
from transfiner_refine.formats.json_stream import whole
from transfiner_refine.formats.polygons import LEAST_IOU, Part, iou, joined, polygons_of
from transfiner_refine.masks import MAX_PIXELS, MaskWindow

_LOOKED_AT = 1 << 16  # bytes
_LARGEST_PNG = 1 << 28  # bytes that a bitmap may unpack to


class _Supervisely(JsonTool):
    name = "supervisely"
    holds_crowds = False

    def recognise(self, path: Path) -> bool:
        starts = [start_of(file, _LOOKED_AT) for file in first_files(path, ".json")]
        return any(b'"objects"' in start and b'"size"' in start for start in starts)

    def files(self, names: Iterable[PurePosixPath]) -> list[PurePosixPath]:
        found = super().files(names)
        annotations = [name for name in found if name.parent.name == "ann"]
        return annotations or [
            name for name in found if name.name not in ("meta.json", "obj_class_to_machine_color.json")
        ]

    def file_name(self, stem: PurePosixPath, image: PurePosixPath) -> str:
        return f"{stem}{image.suffix}{self.ending}"

    def image_name(self, name: PurePosixPath) -> PurePosixPath:
        image = name.with_name(name.name.removesuffix(self.ending))
        return image.parent.with_name("img") / image.name if image.parent.name == "ann" else image

    def read(self, document: Any) -> list[Picture]:
        objects, size = plain(plain(document, dict).get("objects"), list), plain(document.get("size"), dict)
        height, width = whole(size.get("height")) or 0, whole(size.get("width")) or 0
        drawn = [
            _instance(number, each)
            for number, each in enumerate(objects)
            if isinstance(each, dict) and each.get("geometryType") in ("bitmap", "polygon")
        ]
        return [Picture("", (height, width) if height > 0 and width > 0 else None, drawn)]

    def shapes(self, mask: MaskWindow, old: Any, tolerance: float, _group: int) -> list[dict[str, Any]]:
        return [_shape(mask, tolerance, is_polygon=old.get("geometryType") == "polygon")]

    def new_image(
        self, name: str, size: tuple[int, int], found: Sequence[NewInstance], tolerance: float
    ) -> dict[str, Any]:
        objects = [
            {"classTitle": label, "description": "", "tags": []}
            | {"geometryType": "polygon", **_shape(mask, tolerance, is_polygon=tolerance > 0)}
            for mask, label, _, _ in found
        ]
        size_of = {"height": size[0], "width": size[1]}
        return {
            "description": "",
            "name": PurePosixPath(name).name,
            "size": size_of,
            "tags": [],
            "objects": objects,
        }


def _instance(number: int, shape: dict[str, Any]) -> Drawn:
    title = shape.get("classTitle")
    label = title if isinstance(title, str) else None
    return Drawn(f"object {number} ({label})", [("objects", number)], areas_of(_area, shape), label)


def _area(shape: dict[str, Any]) -> Area:
    if shape["geometryType"] == "polygon":
        points = plain(plain(shape).get("points"), dict)
        inside = plain(points.get("interior") or [], list)
        rings = [points_of(ring, 3, "polygon") for ring in (points.get("exterior"), *inside)]
        return partial(_filled, rings)
    bitmap = plain(plain(shape).get("bitmap"), dict)
    origin, data = points_of([bitmap.get("origin")], 1, "bitmap")[0], bitmap.get("data")
    if not isinstance(data, str):
        raise InputError("its bitmap has no data", remedy="draw the shape again")
    return partial(_unpacked, data, origin)


def _unpacked(data: str, origin: NDArray[np.float64], size: tuple[int, int]) -> MaskWindow:
    try:
        packed = base64.b64decode(data)
        if packed.startswith(b"\x89PNG"):
            return pasted_png(packed, origin, size)
        picture = zlib.decompressobj().decompress(packed, _LARGEST_PNG)
    except (ValueError, zlib.error) as error:
        raise InputError(f"its bitmap is damaged ({error})", remedy="draw the shape again") from None
    return pasted_png(picture, origin, size)


def _filled(rings: Sequence[NDArray[np.float64]], size: tuple[int, int]) -> MaskWindow:
    """The pixels that points name, and those inside, less those of the holes; as Supervisely draws them."""
    import cv2  # here, because listing the formats must not wait for it

    height, width = size
    every = np.concatenate(rings)
    if np.maximum(-every, every - (width, height)).max() > max(size) or height * width > MAX_PIXELS:
        raise InputError(
            f"a point lies far outside of its {width}×{height} image", remedy="draw the shape again"
        )
    (x0, y0), (x1, y1) = (
        np.clip(np.rint(at), 0, (width - 1, height - 1)).astype(int) for at in (every.min(0), every.max(0))
    )
    drawn = np.zeros((y1 - y0 + 1, x1 - x0 + 1), np.uint8)
    for number, ring in enumerate(rings):
        cv2.fillPoly(drawn, [np.rint(ring).astype(np.int32) - np.array((x0, y0), np.int32)], int(number == 0))
    return MaskWindow(drawn.astype(bool), int(x0), int(y0), size).tight()


def _shape(mask: MaskWindow, tolerance: float, *, is_polygon: bool) -> dict[str, Any]:
    """What a shape gets: a bitmap in place of a polygon that would hold another mask, as of several parts."""

    def rings(parts: list[Part]) -> list[NDArray[np.float64]]:
        return [np.rint(joined(part) - 0.5) for part in parts]

    def read(parts: list[Part]) -> MaskWindow:
        return _filled(rings(parts), mask.image_size)

    parts = polygons_of(mask, tolerance, read) if is_polygon else []
    if len(parts) == 1 and iou(read(parts), mask) >= LEAST_IOU:
        return {"points": {"exterior": rings(parts)[0].astype(int).tolist(), "interior": []}}
    mask = mask.tight()
    data = base64.b64encode(zlib.compress(png_of(mask))).decode("ascii")
    change = {"geometryType": "bitmap", "bitmap": {"data": data, "origin": [mask.x, mask.y]}}
    return change | ({"points": {"exterior": [], "interior": []}} if is_polygon else {})


SUPERVISELY = format_of(_Supervisely())
