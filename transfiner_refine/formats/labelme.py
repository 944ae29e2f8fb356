"""labelme: a JSON file for each photo, with the shapes that somebody drew.

    labels/street.json                     {"shapes": [...], "imagePath": "street.jpg", "imageHeight": ..., ...}

Polygons, rectangles, circles and masks are areas; those of one label and one ``group_id`` are one instance. Points
and lines pass through. The photo is found in ``--images`` by the name in ``imagePath`` (its folders do not count, for
they are those of another machine), else by the name of the JSON file; a photo inside the JSON (``imageData``) stays
there.

A refined instance stands where its first shape stood and keeps that shape's other keys: a polygon each part, all in one
group, or one shape of type "mask" where there are holes, which polygons do not have. Everything else in the file stays
as it is; files without a refined instance are copied byte for byte.

Written from other formats: one JSON an image without ``imageData``, a score as key "score", a crowd as flag "iscrowd".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from transfiner_refine.errors import InputError
from transfiner_refine.formats.class_names import read_class_names
from transfiner_refine.formats.folders import FolderEntry, FolderSource, ImageTree, first_files
from transfiner_refine.formats.labelme_shapes import Shape, ShapesMask, is_area, parse_shape, shapes_of
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
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder

__all__ = ["LABELME", "LabelmeSource"]

_VERSION = "5.5.0"  # of the layout; the first releases with mask shapes were of 5.3
_NO_CLASS = "object"
_CROWD = "iscrowd"
_LOOKED_AT = 1 << 20  # bytes; a photo inside the file may come before the shapes


@dataclass(frozen=True)
class _Drawn:
    """One instance of a file.

    Attributes:
        places: where its shapes are in the file's list.
        label: its class's name.
        shapes: its areas.
        score: as written by this package, None where there is none.
        is_crowd: it is flagged as a crowd.
        group_id: its group, None for none.
        error: why it cannot be used.
    """

    places: tuple[int, ...]
    label: str
    shapes: tuple[Shape, ...] = ()
    score: float | None = None
    is_crowd: bool = False
    group_id: int | None = None
    error: InputError | None = None


@dataclass(frozen=True)
class _File:
    """What is kept of a file; its photo is not.

    Attributes:
        drawn: its instances, by their first shape.
        size: (height, width) that it states, None where it states none.
        photo: name of its photo without folder, None where it has none.
    """

    drawn: tuple[_Drawn, ...]
    size: tuple[int, int] | None
    photo: str | None


class LabelmeSource(FolderSource):
    """The JSON files of a folder and its subfolders."""

    def __init__(self, folder: Path, images: Path | None, class_names: Path | None = None) -> None:
        """Reads the JSON files.

        Args:
            folder: the folder of the JSON files.
            images: the folder of the photos, None to do without them.
            class_names: a text file of names that numbers the labels, first line = 0. Labels that are not in it, or
                all of them where there is none, are numbered on in the order of the alphabet, from 1 on at least.

        Raises:
            InputError: no such folder, no JSON file in it, or no image that can be used.
        """
        super().__init__(folder, images)
        names = [name for name in self.files if name.suffix.lower() == ".json"]
        if not names:
            raise InputError("holds no JSON files", file=folder, remedy="give a folder of labelme's files")
        photos = None if images is None else ImageTree(images)
        self._files: list[_File] = []
        found = []
        for name in names:
            try:
                file = _read(folder / name)
            except InputError as error:
                self._files.append(_File((), None, None))
                found.append(FolderEntry(name, name.with_suffix(""), 1, error=error))
                continue
            self._files.append(file)
            stem = name.with_suffix("")
            called = None if file.photo is None else name.with_name(PurePosixPath(file.photo).stem)
            if called is not None and (photos is None or photos.has_key(called.name)):
                stem = called
            found.append(FolderEntry(name, stem, len(file.drawn)))
        self.entries = tuple(found)
        self._names = {} if class_names is None else read_class_names(class_names)
        labels = {drawn.label for file in self._files for drawn in file.drawn} - set(self._names.values())
        self._names.update(enumerate(sorted(labels), max([0, *self._names]) + 1))
        self._ids = {label: number for number, label in reversed(self._names.items())}
        self.find_images(photos)

    @property
    def categories(self) -> Mapping[int, str]:
        return self._names

    def instances_of(
        self, position: int, size: Callable[[], tuple[int, int]]
    ) -> Iterator[Instance | RecordFault]:
        file, path = self._files[position], self.folder / self.entries[position].name
        for index, drawn in enumerate(file.drawn):
            if drawn.error is not None:
                yield RecordFault(drawn.error)
                continue
            record = f"shape {drawn.places[0]} ({drawn.label})"
            yield Instance(
                index=index,
                mask=ShapesMask(drawn.shapes, file.size or size(), path, record),
                label=f"{self.entries[position].name} {record}",
                category_id=self._ids[drawn.label],
                score=drawn.score,
                is_crowd=drawn.is_crowd,
            )

    def stated_size(self, position: int) -> tuple[int, int] | None:
        return self._files[position].size

    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        name = self.entries[position].name
        document = _load(self.folder / name)
        shapes: list[Any] = document["shapes"]
        replaced: dict[int, list[Any]] = {}
        free = _free_group(shapes)
        for index, mask in masks.items():
            drawn = self._files[position].drawn[index]
            first, *others = drawn.places
            replaced[first] = shapes_of(mask.decode(), shapes[first], drawn.group_id, free)
            replaced.update((place, []) for place in others)
            free += 1
        document["shapes"] = [
            shape for place, before in enumerate(shapes) for shape in replaced.get(place, [before])
        ]
        _dump(document, draft / name)
        return Written()

    def usual_image_name(self, position: int) -> str | None:
        photo = self._files[position].photo
        return None if photo is None else self.entries[position].name.with_name(photo).as_posix()


def recognise(path: Path) -> bool:
    """A folder of JSON files that speak of shapes and of an image's path."""
    found = first_files(path, ".json")
    return bool(found) and all(_mentions(file, b'"shapes"') for file in found)


def open_labelme(path: Path, options: OpenOptions) -> LabelmeSource:
    """Reads the JSON files.

    Raises:
        InputError: no such folder, no JSON file in it, or no image that can be used.
    """
    return LabelmeSource(path, options.images, options.class_names)


def write(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a JSON file an image.

    Raises:
        OutputError: the disk refused.
    """
    conversion = Conversion(source, results)
    with atomic_folder(output) as draft:
        for stem, size, image in conversion:
            document = _document(conversion, stem, size, image, source.categories)
            _dump(document, draft / f"{stem}.json")
    return conversion.written()


def _document(
    conversion: Conversion,
    stem: PurePosixPath,
    size: tuple[int, int],
    image: ImageRecord,
    categories: Mapping[int, str],
) -> dict[str, Any]:
    shapes: list[dict[str, Any]] = []
    for group_id, instance in enumerate(image.instances, 1):
        mask = instance.mask.decode().hard()
        if mask.area == 0:
            conversion.leave_out(image, instance, "its mask is empty", "labelme has no shape without points")
            continue
        number = instance.category_id
        like: dict[str, Any] = {
            "label": _NO_CLASS if number is None else categories.get(number, str(number)),
            "points": [],
            "group_id": None,
            "description": "",
            "shape_type": "",
            "flags": {_CROWD: True} if instance.is_crowd else {},
            "mask": None,
        }
        if instance.score is not None:
            like["score"] = instance.score
        shapes += shapes_of(mask, like, None, group_id)
    height, width = size
    photo = PurePosixPath(image.file_name or f"{stem}.jpg")
    return {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": photo.name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _read(path: Path) -> _File:
    document = _load(path)
    groups: dict[tuple[str, tuple[str, int]], list[int]] = {}
    for place, shape in enumerate(document["shapes"]):
        if is_area(shape):
            group_id = shape.get("group_id")
            # a shape without group is an instance of its own, hence its place
            group = ("group", group_id) if type(group_id) is int else ("place", place)
            groups.setdefault((str(shape.get("label", _NO_CLASS)), group), []).append(place)
    drawn = tuple(
        _drawn(path, document["shapes"], label, tuple(places)) for (label, _), places in groups.items()
    )
    height, width = document.get("imageHeight"), document.get("imageWidth")
    photo = document.get("imagePath")
    name = PureWindowsPath(photo).name if isinstance(photo, str) else ""  # its parts may be parted by \ or /
    size = None
    if type(height) is int and type(width) is int and height > 0 and width > 0:
        size = (height, width)
    return _File(drawn, size, name or None)


def _drawn(path: Path, shapes: list[Any], label: str, places: tuple[int, ...]) -> _Drawn:
    first = shapes[places[0]]
    try:
        areas = tuple(parse_shape(shapes[place]) for place in places)
    except InputError as error:
        blamed = InputError(
            error.reason, file=path, record=f"shape {places[0]} ({label})", remedy=error.remedy
        )
        return _Drawn(places, label, error=blamed)
    score, flags, group_id = first.get("score"), first.get("flags"), first.get("group_id")
    return _Drawn(
        places,
        label,
        areas,
        float(score) if type(score) in (int, float) and math.isfinite(score) else None,
        isinstance(flags, dict) and flags.get(_CROWD) is True,
        group_id if type(group_id) is int else None,
    )


def _free_group(shapes: list[Any]) -> int:
    """A group id that no shape of the file has, nor any above it."""
    used = [shape.get("group_id") for shape in shapes if isinstance(shape, dict)]
    return max([0, *(group_id for group_id in used if type(group_id) is int)]) + 1


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="check --masks") from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or numbers of thousands of digits
        raise InputError(f"is not valid JSON: {error}", file=path, remedy="replace the file") from None
    if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
        raise InputError("has no list of shapes", file=path, remedy="give files that labelme has written")
    return document


def _dump(document: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False, indent=2), encoding="utf-8")


def _mentions(path: Path, key: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return key in file.read(_LOOKED_AT)
    except OSError:
        return False


LABELME = Format("labelme", "labelme JSON (a file for each photo)", True, recognise, open_labelme, write)
