"""labelme: a JSON file for each image, with the shapes that somebody drew.

    labels/street.json                     {"shapes": [...], "imagePath": "street.jpg", "imageHeight": ..., ...}

Polygons, rectangles, circles and masks are areas; those of one label and one ``group_id`` are one instance. Points
and lines pass through. The image is found in ``--images`` by the name in ``imagePath`` (its folders do not count, for
they are those of another machine), else by the name of the JSON file; an image inside the JSON (``imageData``) stays
there.

A refined instance stands where its first shape stood and keeps that shape's other keys: a polygon each part, all in one
group, or one shape of type "mask" where there are holes, which polygons do not have. The file is edited in place: every
other byte stays.

Written from other formats: one JSON an image without ``imageData``, a score as key "score", a crowd as flag "iscrowd".
"""

from __future__ import annotations

import base64
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.formats.class_names import read_class_names
from transfiner_refine.formats.folders import (
    FolderEntry,
    FolderSource,
    first_files,
    start_of,
    write_file,
)
from transfiner_refine.formats.json_stream import Ambiguous, edited, parse, parts, whole
from transfiner_refine.formats.polygons import fill_polygons, inset_points, outlines
from transfiner_refine.formats.records import (
    Format,
    ImageRecord,
    Instance,
    OpenOptions,
    RecordFault,
    Source,
    Written,
)
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.image_folders import ImageTree
from transfiner_refine.masks import MAX_PIXELS, Mask, MaskWindow, check_size, union
from transfiner_refine.output import atomic_folder

_VERSION = "5.5.0"  # of the layout; the first releases with mask shapes were of 5.3
_NO_CLASS = "object"
_CROWD = "iscrowd"
_LARGEST = sys.float_info.max
_LOOKED_AT = 1 << 20  # bytes; an image inside the file may come before the shapes
_FEWEST_POINTS = {"polygon": 3, "rectangle": 2, "oriented_rectangle": 4, "circle": 2, "mask": 2}  # of areas


class _Area(NamedTuple):
    """One shape: labelme's ``shape_type``, [points, xy] in pixels, and for a mask the base64 of its PNG."""

    kind: str
    points: NDArray[np.float64]
    picture: str | None


@dataclass(frozen=True)
class _AreasMask:
    """The areas of one instance as one mask; ``file`` and ``record`` are for messages."""

    areas: tuple[_Area, ...]
    file: Path
    record: str
    size: tuple[int, int] = (0, 0)  # where the file states none, known once the image has been looked at

    def decode(self) -> MaskWindow:
        """All pixels that are in any of the areas, inside their bounding box, bool."""
        try:
            check_size(self.size)
            return union([_drawn(area, self.size) for area in self.areas], self.size)
        except InputError as error:
            raise error.at(self.file, self.record) from error


class _Instance(NamedTuple):
    """One instance of a file: where its shapes are in the list, and what is kept of them."""

    places: list[int]
    label: str
    mask: _AreasMask | InputError
    score: float | None
    is_crowd: bool


class LabelmeSource(FolderSource):
    """The JSON files of a folder and its subfolders.

    Class names of ``--class-names`` number the labels, first line = 0. Labels that are not among them, or all of them
    where there are none, are numbered on in the order of the alphabet, from 1 on at least.
    """

    def __init__(self, folder: Path, options: OpenOptions) -> None:
        super().__init__(folder, options.images)
        files = [name for name in self.files if name.suffix.lower() == ".json"]
        if not files:
            raise InputError("holds no JSON files", file=folder, remedy="give a folder of labelme's files")
        self._tree = None if options.images is None else ImageTree(options.images)
        self._instances: dict[PurePosixPath, list[_Instance]] = {}  # of each file
        self.parse_entries(files, self._entry)
        names = {} if options.class_names is None else read_class_names(options.class_names)
        labels = {drawn.label for instances in self._instances.values() for drawn in instances}
        names.update(enumerate(sorted(labels - {*names.values()}), max([0, *names]) + 1))
        self._ids = {label: number for number, label in reversed(names.items())}
        self.categories = names
        self.find_images(self._tree)

    def instances_of(
        self, position: int, size: Callable[[], tuple[int, int]]
    ) -> Iterator[Instance | RecordFault]:
        entry = self.entries[position]
        for index, drawn in enumerate(self._instances[entry.name]):
            if isinstance(drawn.mask, InputError):
                yield RecordFault(drawn.mask)
                continue
            mask, category_id = replace(drawn.mask, size=entry.size or size()), self._ids[drawn.label]
            label = f"{entry.name} {mask.record}"
            yield Instance(index, mask, label, category_id, drawn.score, drawn.is_crowd)

    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        name = self.entries[position].name
        text = self.text(name)
        start = next(start for key, _, start, _ in parts(text) if key == "shapes")
        shapes = list(parts(text, start))
        groups = [whole(shape.get("group_id")) for _, shape, _, _ in shapes if isinstance(shape, dict)]
        free_group = max([0, *(group for group in groups if group is not None)]) + 1
        between = "," + text[start + 1 : shapes[0][2]]
        new: dict[int, tuple[int, int, str]] = {}  # edits by place
        for index, mask in masks.items():
            first, *others = self._instances[name][index].places
            _, shape, begin, end = shapes[first]
            records = _shapes_of(mask.decode(), shape, free_group) or [{}]  # an empty mask changes nothing
            new[first] = (begin, end, between.join(_with(text[begin:end], record) for record in records))
            # each other goes with the comma before it; the first of a file is never among them
            for place in others:
                new[place] = (shapes[place - 1][3], shapes[place][3], "")
            free_group += 1
        self.write_text(name, edited(text, [new[place] for place in sorted(new)]), draft)
        return Written()

    def _entry(self, name: PurePosixPath) -> FolderEntry:
        path = self.folder / name
        try:
            document = parse(self.text(name))
            if isinstance(document, Ambiguous):
                raise document.error
        except InputError as error:
            raise error.at(path) from None
        if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
            raise InputError("has no list of shapes", file=path, remedy="give files that labelme has written")
        self._instances[name] = _instances_of(document["shapes"], path)
        height, width, image_path = (document.get(key) for key in ("imageHeight", "imageWidth", "imagePath"))
        size = (height, width) if type(height) is type(width) is int and height > 0 and width > 0 else None
        # the parts of the path may be parted by \ or /
        called = PureWindowsPath(image_path).name if isinstance(image_path, str) else ""
        is_image = bool(called) and (self._tree is None or self._tree.has_key(PurePosixPath(called).stem))
        return FolderEntry(
            name,
            name.with_name(called if is_image else name.name).with_suffix(""),
            len(self._instances[name]),
            size=size,
            usual_name=name.with_name(called).as_posix() if called else None,
        )


def recognise(path: Path) -> bool:
    """A folder of JSON files; half of the first ones at least speak of shapes."""
    found = [b'"shapes"' in start_of(file, _LOOKED_AT) for file in first_files(path, ".json")]
    return any(found) and 2 * sum(found) >= len(found)


def write(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a JSON file an image."""
    conversion = Conversion(source, results, ending=".json")
    with atomic_folder(output) as draft:
        for stem, (height, width), image in conversion:
            document: dict[str, Any] = {
                "version": _VERSION,
                "flags": {},
                "shapes": _new_shapes(conversion, image, source.categories),
                "imagePath": PurePosixPath(image.file_name or f"{stem}.jpg").name,
                "imageData": None,
                "imageHeight": height,
                "imageWidth": width,
            }
            text = json.dumps(document, ensure_ascii=False, indent=2)
            # half of a pair of characters, which no UTF-8 can hold, becomes its escape in JSON
            write_file(draft / f"{stem}.json", text.encode(errors="backslashreplace"))
    return conversion.written()


def _new_shapes(
    conversion: Conversion, image: ImageRecord, categories: Mapping[int, str]
) -> list[dict[str, Any]]:
    shapes = []
    for group_id, instance in enumerate(image.instances, 1):
        mask = instance.mask.decode().hard()
        if mask.area == 0:
            conversion.leave_out(image, instance, "its mask is empty", "labelme has no shape without points")
            continue
        label, flags = _label(instance.category_id, categories), {_CROWD: True} if instance.is_crowd else {}
        shape: dict[str, Any] = {"label": label, "points": [], "group_id": None, "description": ""}
        shape |= {"shape_type": "", "flags": flags, "mask": None}
        if instance.score is not None:
            shape["score"] = instance.score
        shapes += [shape | record for record in _shapes_of(mask, shape, group_id)]
    return shapes


def _label(number: int | None, categories: Mapping[int, str]) -> str:
    """The name of a category; one without a name gets one that no other has."""
    if number is not None and number in categories:
        return categories[number]
    label = _NO_CLASS if number is None else str(number)
    while label in categories.values():
        label = f"{label} (no name)"
    return label


def _instances_of(shapes: list[Any], path: Path) -> list[_Instance]:
    groups: dict[tuple[str, str, Any], list[int]] = {}
    for place, shape in enumerate(shapes):
        if isinstance(shape, dict) and _kind(shape) in _FEWEST_POINTS:
            group_id = shape.get("group_id")
            # a shape without group is an instance of its own, hence its place
            group = ("group", group_id) if type(group_id) in (int, float, str) else ("place", place)
            groups.setdefault((str(shape.get("label", _NO_CLASS)), *group), []).append(place)
    instances = []
    for (label, *_), places in groups.items():
        mask: _AreasMask | InputError
        record = f"shape {places[0]} ({label})"
        try:
            mask = _AreasMask(tuple(_area(shapes[place]) for place in places), path, record)
        except InputError as error:
            mask = error.at(path, record)
        first = shapes[places[0]]
        score, flags = first.get("score"), first.get("flags")
        score = float(score) if type(score) in (int, float) and abs(score) <= _LARGEST else None
        crowd = isinstance(flags, dict) and flags.get(_CROWD) is True
        instances.append(_Instance(places, label, mask, score, crowd))
    return instances


def _kind(shape: dict[str, Any]) -> str:
    kind = shape.get("shape_type", "polygon")  # the first versions had polygons only and did not say so
    return kind if isinstance(kind, str) else "polygon" if kind is None else ""


def _area(shape: dict[str, Any]) -> _Area:
    """A shape, checked."""
    if isinstance(shape, Ambiguous):
        raise shape.error
    kind, points, picture = _kind(shape), shape.get("points"), shape.get("mask")
    if (
        not isinstance(points, list)
        or len(points) < _FEWEST_POINTS[kind]
        or not all(isinstance(point, list) and len(point) == 2 for point in points)
        or any(type(number) not in (int, float) for point in points for number in point)
    ):
        reason = f"a {kind} needs {_FEWEST_POINTS[kind]} points or more, [x, y] each"
        raise InputError(reason, remedy="draw the shape again")
    if kind == "mask" and not isinstance(picture, str):
        raise InputError("a shape of type mask has no mask", remedy="draw the shape again")
    try:
        corners = np.array(points, np.float64)
    except OverflowError:
        raise InputError("has a coordinate without end", remedy="draw the shape again") from None
    if not np.isfinite(corners).all():
        raise InputError("has a coordinate that is not a finite number", remedy="draw the shape again")
    return _Area(kind, corners, picture if kind == "mask" else None)


def _drawn(area: _Area, size: tuple[int, int]) -> MaskWindow:
    kind, points, picture = area
    if picture is not None:
        return _pasted(picture, points, size)
    if kind == "circle":
        return _disc(points, size)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points[:2]
        points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    return fill_polygons([points], size)


def _disc(points: NDArray[np.float64], size: tuple[int, int]) -> MaskWindow:
    """The pixels whose centres are inside a circle, given by its centre and a point on it."""
    (x, y), radius = points[0], math.hypot(*(points[1] - points[0]))
    height, width = size
    if not max(abs(x), abs(y), radius) <= 3 * max(size):
        raise InputError(f"the circle at ({x:g}, {y:g}) lies far outside of its {width}×{height} image")
    x0, y0 = max(0, math.floor(x - radius)), max(0, math.floor(y - radius))
    columns = np.arange(x0, max(x0, min(width, math.ceil(x + radius))))
    rows = np.arange(y0, max(y0, min(height, math.ceil(y + radius))))
    inside = np.hypot(columns[None] + 0.5 - x, rows[:, None] + 0.5 - y) < radius
    return MaskWindow(inside, x0, y0, size).tight()


def _pasted(picture: str, points: NDArray[np.float64], size: tuple[int, int]) -> MaskWindow:
    """The picture of a mask shape at its place: its first point is its upper left pixel."""
    height, width = size
    try:
        with Image.open(io.BytesIO(base64.b64decode(picture)), formats=("PNG",)) as image:
            if image.width * image.height > height * width:
                raise InputError(f"its mask is {image.height}×{image.width}, larger than its image")
            pixels = np.asarray(image)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise what they like on damaged files
        raise InputError(f"its mask is no PNG ({error})", remedy="draw the shape again") from None
    values: NDArray[np.bool_] = np.any(pixels.reshape(*pixels.shape[:2], -1), axis=2)
    x, y = (int(corner) for corner in np.clip(points[0], -MAX_PIXELS, MAX_PIXELS))
    left, top = max(0, -x), max(0, -y)
    inside = values[top : max(top, height - y), left : max(left, width - x)]
    return MaskWindow(inside, x + left, y + top, size).tight() if inside.size else union([], size)


def _shapes_of(mask: MaskWindow, shape: Mapping[str, Any], free_group: int) -> list[dict[str, Any]]:
    """The changes that make a shape those of a mask: one for each polygon, or one mask where there are holes.

    Lines run a quarter of a pixel inside the edges of the pixels, so that labelme's own export paints these pixels and
    no more. Several parts without a group get ``free_group``.
    """
    loops = outlines(mask)
    if any(loop.is_hole for loop in loops):
        mask = mask.tight()
        height, width = mask.values.shape
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(mask.foreground)).save(buffer, format="PNG")
        corners = [[float(mask.x), float(mask.y)], [float(mask.x + width - 1), float(mask.y + height - 1)]]
        picture = base64.b64encode(buffer.getvalue()).decode("ascii")
        return [{"points": corners, "shape_type": "mask", "mask": picture}]
    more: dict[str, Any] = {"mask": None} if "mask" in shape else {}
    if len(loops) > 1 and shape.get("group_id") is None:
        more["group_id"] = free_group
    return [{"points": inset_points(loop), "shape_type": "polygon"} | more for loop in loops]


def _with(text: str, changes: dict[str, Any]) -> str:
    """The text of a shape with some values replaced, or added after the others."""
    missing, edits, end = dict(changes), [], 0
    for key, _, start, end in parts(text):
        if key in changes:
            edits.append((start, end, json.dumps(missing.pop(key))))
    added = "".join(f", {json.dumps(key)}: {json.dumps(value)}" for key, value in missing.items())
    return edited(text, [*edits, (end, end, added)])


LABELME = Format("labelme", True, recognise, LabelmeSource, write)
