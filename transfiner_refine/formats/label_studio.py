"""Label Studio's JSON: one list of tasks, each with the annotations and predictions of an image.

    [{"id": 1, "data": {"image": "/data/upload/1/0a1b2c3d-street.jpg"}, "annotations": [{"result": [
        {"type": "brushlabels", "original_width": 640, "original_height": 480,
         "value": {"format": "rle", "rle": [...], "brushlabels": ["cup"]}},
        {"type": "polygonlabels", ..., "value": {"points": [[12.5, 20.0], ...], "polygonlabels": ["cup"]}}]}]}]

Brushes and polygons are areas, those of annotations and of predictions; all else passes through. Points are in
per cent of the image. A brush is a run-length code of four channels, of which the last is the mask (``_decoded``). The
image is found by the last part of its address, with or without what an upload has put before its name.

A refined region keeps its kind and all keys but its points or its code; every other byte of the file stays. A polygon
holds several parts and holes on bridges.

Written from other formats: brushes, or polygons with a tolerance, as predictions where there are scores, else as
annotations. There is no place for crowds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError, short
from transfiner_refine.formats.annotation_files import (
    Drawn,
    JsonTool,
    NewInstance,
    Picture,
    areas_of,
    format_of,
    plain,
    score_of,
)
from transfiner_refine.formats.areas import Area, points_of
from transfiner_refine.formats.folders import start_of
from transfiner_refine.formats.json_stream import whole
from transfiner_refine.formats.polygons import Part, fill_polygons, joined, polygons_of
from transfiner_refine.images import SUFFIXES
from transfiner_refine.masks import MAX_PIXELS, MaskWindow

_LOOKED_AT = 1 << 16  # bytes
_TASK = re.compile(rb'"(?:annotations|predictions)"\s*:')
_CHANNELS = 4
_WORD = 8  # bits of a value
_SIZES = (3, 4, 8, 16)  # bits of a run's length; each run takes the shortest that holds it
_BEFORE_THE_CLASS = {"brush": "tag", "polygon": "label"}  # names of Label Studio's own templates


class _LabelStudio(JsonTool):
    name = "label-studio"
    one_file = True
    holds_crowds = False
    others_follow = True

    def recognise(self, path: Path) -> bool:
        start = start_of(path, _LOOKED_AT).removeprefix(b"\xef\xbb\xbf").lstrip()
        return start.startswith(b"[") and bool(_TASK.search(start)) and b'"segmentation"' not in start

    def read(self, document: Any) -> list[Picture]:
        if not isinstance(document, list):
            raise InputError("is no list of tasks", remedy="export the project as JSON")
        return [_picture(number, task) for number, task in enumerate(document)]

    def shapes(self, mask: MaskWindow, old: Any, tolerance: float, _group: int) -> list[dict[str, Any]]:
        return [_code(mask) if "rle" in old else _polygon(mask, tolerance)]

    def new_image(
        self, name: str, size: tuple[int, int], found: Sequence[NewInstance], tolerance: float
    ) -> dict[str, Any]:
        kind, result = "polygon" if tolerance else "brush", []
        for number, (mask, label, score, _) in enumerate(found):
            value = (_polygon(mask, tolerance) | {"closed": True}) if tolerance else _code(mask)
            region: dict[str, Any] = {
                "id": f"region{number}",
                "type": f"{kind}labels",
                "from_name": _BEFORE_THE_CLASS[kind],
            }
            region |= {"to_name": "image", "original_width": size[1], "original_height": size[0]}
            region |= {"image_rotation": 0, "value": value | {f"{kind}labels": [label]}}
            result.append(region if score is None else region | {"score": score})
        has_scores = any(each.score is not None for each in found)
        return {"data": {"image": name}, "predictions" if has_scores else "annotations": [{"result": result}]}


def _picture(number: int, task: Any) -> Picture:
    drawn, sizes = list[Drawn](), list[tuple[int, int]]()
    try:
        data = plain(plain(task, dict).get("data"), dict)
        name = _image_in(data) or f"task {number}"
        for where, entry in _regions(number, task):
            drawn.append(_instance(where, entry, sizes))
    except InputError as error:  # nothing of the task is known, and it stays as it is
        return Picture(f"task {number}", None, [], error)
    regions: dict[Any, Drawn] = {}
    for each in drawn:  # a region that is there twice, once with its class alone, is one
        key = (each.places[0][:4], each.record) if each.places else each.record
        known = regions.get(key)
        regions[key] = (
            each
            if known is None
            else known._replace(places=[*known.places, *each.places], label=known.label or each.label)
        )
    return Picture(name, sizes[0] if sizes else None, list(regions.values()))


def _image_in(data: Mapping[str, Any]) -> str | None:
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    images = [
        text for text in texts.values() if PurePosixPath(text.partition("?")[0]).suffix.lower() in SUFFIXES
    ]
    return texts.get("image") or next(iter(images), None)


def _regions(number: int, task: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """Place and value of each result that is a brush or a polygon."""
    for key in ("annotations", "predictions"):
        for at, annotation in enumerate(plain(task.get(key) or [], list)):
            if not isinstance(annotation, dict):
                continue  # an id of one that the export leaves out
            for index, entry in enumerate(plain(plain(annotation).get("result") or [], list)):
                value = entry.get("value") if isinstance(entry, dict) else None
                if isinstance(value, dict) and ("rle" in value or _is_polygon(entry, value)):
                    yield (number, key, at, "result", index), entry


def _is_polygon(entry: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    return "points" in value and str(entry.get("type")).startswith(("polygon", "labels"))


def _instance(where: tuple[str | int, ...], entry: Any, sizes: list[tuple[int, int]]) -> Drawn:
    _, key, at, _, index = where
    record = f"{str(key)[:-1]} {at}, region {short(entry.get('id', index))}"
    value = entry["value"]
    labels: list[Any] = next(
        (value[name] for name in value if name.endswith("labels") and isinstance(value[name], list)), []
    )
    label = labels[0] if labels and isinstance(labels[0], str) else None
    areas = areas_of(lambda entry: _area(plain(entry), plain(value), sizes), entry)
    return Drawn(record, [(*where, "value")], areas, label, score_of(entry.get("score")))


def _area(entry: Mapping[str, Any], value: Mapping[str, Any], sizes: list[tuple[int, int]]) -> Area:
    width, height = whole(entry.get("original_width")), whole(entry.get("original_height"))
    if width is None or height is None or min(width, height) < 1 or width * height > MAX_PIXELS:
        stated = f"{short(entry.get('original_width'))}×{short(entry.get('original_height'))}"
        raise InputError(f"its original_width and original_height are {stated}", remedy="export it again")
    sizes.append((height, width))
    if sizes[0] != (height, width):
        raise InputError(f"its image is {width}×{height}, and {sizes[0][1]}×{sizes[0][0]} in other regions")
    if whole(entry.get("image_rotation", 0)) != 0:
        reason = f"its image was turned by {short(entry['image_rotation'])} degrees"
        raise InputError(reason, remedy="turn the image itself, and draw the region again")
    if "rle" not in value:
        points = points_of(value["points"], 3, "polygon") * (width / 100, height / 100)
        return partial(fill_polygons, [points])
    code = value["rle"]
    if not isinstance(code, list) or any(type(byte) is not int or not 0 <= byte < 256 for byte in code):
        raise InputError("its rle is no list of bytes", remedy="draw the region again")
    return partial(_decoded, bytes(code))


def _polygon(mask: MaskWindow, tolerance: float) -> dict[str, Any]:
    height, width = mask.image_size
    scale = np.array((100 / width, 100 / height))

    def points(parts: list[Part]) -> NDArray[np.float64]:
        return np.round(joined(list(chain.from_iterable(parts))) * scale, 6)

    def read(parts: list[Part]) -> MaskWindow:
        return fill_polygons([points(parts) / scale], mask.image_size)

    return {"points": points(polygons_of(mask, tolerance, read)).tolist()}


def _decoded(code: bytes, size: tuple[int, int]) -> MaskWindow:
    """The mask of a brush: its pixels whose fourth channel is not 0.

    The code has, in bits: 32 the number of values, 5 the bits of a value less 1, four times 4 the bits of a length
    less 1; then for each run: 1 whether one value is repeated, 2 which of the four lengths, the length less 1, and the
    value, or as many values as the length says. Raises InputError where it is another, or ends too early.
    """
    height, width = size
    bits = "".join(f"{byte:08b}" for byte in code)
    at = 32 + 5 + 4 * 4
    damaged = InputError("its rle is damaged", remedy="draw the region again")
    if len(bits) < at or (total := int(bits[:32], 2)) != height * width * _CHANNELS:
        raise InputError(
            f"its rle is not that of an image of {width}×{height}", remedy="draw the region again"
        )
    word, values, lengths, done = int(bits[32:37], 2) + 1, list[int](), list[int](), 0
    sizes = [int(bits[first : first + 4], 2) + 1 for first in range(37, at, 4)]
    while done < total:
        if at + 3 > len(bits):
            raise damaged
        length_bits = sizes[int(bits[at + 1 : at + 3], 2)]
        length = int(bits[at + 3 : at + 3 + length_bits] or "0", 2) + 1
        repeated, at = bits[at] == "1", at + 3 + length_bits
        end = at + word * (1 if repeated else length)
        if end > len(bits) or done + length > total:
            raise damaged
        found = [int(bits[first : first + word], 2) for first in range(at, end, word)]
        values += found
        lengths += [length] if repeated else [1] * length
        at, done = end, done + length
    flat = np.repeat(np.array(values, np.int64) > 0, lengths)
    return MaskWindow(flat.reshape(height, width, _CHANNELS)[..., -1], 0, 0, size).tight()


def _code(mask: MaskWindow) -> dict[str, Any]:
    """A mask as a brush, all channels alike: 255 inside."""
    flat = mask.paste().ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff([0, *edges.tolist(), flat.size]) * _CHANNELS
    pieces = [f"{flat.size * _CHANNELS:032b}{_WORD - 1:05b}", *(f"{bits - 1:04b}" for bits in _SIZES)]
    value = bool(flat[0])
    for length in lengths.tolist():
        while length > 0:
            run = min(length, 1 << _SIZES[-1])
            which = next(which for which, bits in enumerate(_SIZES) if run <= 1 << bits)
            pieces.append(f"1{which:02b}{run - 1:0{_SIZES[which]}b}{255 * value:08b}")
            length -= run
        value = not value
    bits = "".join(pieces)
    bits += "0" * (-len(bits) % 8)
    code = [int(bits[first : first + 8], 2) for first in range(0, len(bits), 8)]
    return {"format": "rle", "rle": code}


LABEL_STUDIO = format_of(_LabelStudio())
