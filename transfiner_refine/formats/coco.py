"""COCO's files, LVIS's among them, read for every command: results (a list, or one a line) and annotations."""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError, short
from transfiner_refine.formats.json_stream import (
    Ambiguous,
    JsonValues,
    json_lines,
    parse,
    sections,
    whole,
)
from transfiner_refine.formats.segmentation import with_area
from transfiner_refine.formats.text_file import TextFile, is_wide, look_into

ImageId = int | str
ImageKey = ImageId | tuple[str]  # of records without an image_id: the file name that they state
Layout = Literal["results", "lines", "annotations", "panoptic", "info"]  # info: annotations are passed over
RawRecord = tuple[int, str, Any]
"""Index and label of a record, and its text, or what that says, or why there is none (InputError)."""

_ANNOTATIONS = re.compile(rb'"annotations"\s*:\s*\[')
_LOOK = 1 << 16  # bytes of annotations in which one of them says what they are
_LINES = 9  # lines of which half must be results, where the first is none
_NO_IMAGE = -1
_NAMED = 20  # records at fault that one message names
_NO_COCO = "is no COCO file: neither a list of results nor an object with images and annotations"
_NEEDED: dict[Layout, Sequence[tuple[str | None, str, str]]] = {
    "results": [(None, "is no list of results", "leave --from out, or correct it")],
    "annotations": [
        ("images", _NO_COCO, "give COCO results or annotations"),
        ("annotations", "has no list of annotations", "give results or annotations"),
    ],
    "info": [("images", "has no list of images", "give a COCO annotation file")],
}
"""The lists that a file of a layout must have, and what to say where one is missing."""


def layout_of(path: Path) -> Layout | None:
    """Which kind of COCO file a file is, from its first bytes; None if it is none. Reading it says what is wrong."""
    pieces = look_into(path)
    start = next((text for piece in pieces if (text := piece.lstrip())), b"")
    if start.startswith(b"["):
        return "results"
    if not start.startswith(b"{"):
        return "annotations" if is_wide(start) else None
    lines = [line for line in start.split(b"\n") if line.strip()][:_LINES]
    are_records = [_is_record(line) for line in lines]
    if are_records[0] or sum(are_records) * 2 >= len(lines):
        return "lines"
    while not (found := _ANNOTATIONS.search(start)):
        if not (piece := next(pieces, b"")):
            return "annotations"
        start = start[-_LOOK:] + piece
    start = start[found.end() :]
    start += next(pieces, b"") if len(start) < _LOOK else b""
    return "panoptic" if b'"segments_info"' in start[:_LOOK] else "annotations"


def _is_record(line: bytes) -> bool:
    try:
        return key_of(parse(line.decode())) is not None
    except (InputError, UnicodeDecodeError):
        return False


class CocoFile:
    """A COCO file, walked over once: where its records are, and which image each belongs to. None is held parsed."""

    def __init__(self, path: Path, layout: Layout) -> None:
        """Walks over the file, plain or gzip.

        Raises:
            InputError: it cannot be read, is not valid JSON, or of another layout.
        """
        self.path, self.layout, self.text = path, layout, TextFile(path)
        self.records, self._entries = JsonValues(self.text), JsonValues(self.text)  # and those of images
        self.images: dict[ImageKey, int] = {}  # that have records, in the order in which they first occur
        self.own_names: dict[ImageKey, str] = {}  # file names that records state for their images
        self.listed: dict[ImageId, int] = {}  # place of each listed image's entry by id, in the file's order
        self.categories: dict[int, str] = {}  # names by id
        self.stuff = set[int]()  # ids of categories that are no things (``isthing`` 0)
        self.frequencies: dict[int, str] = {}  # LVIS's "r", "c" or "f" by category id
        self.faults: list[InputError] = []  # listed images and categories without an id; they are passed over
        self.dropped_pieces = 0  # of polygons that have others beside them
        self.used_categories = set[int]()  # that records name
        self._repeated, self._raw_ids = set[ImageId](), dict[int, ImageId]()
        self._line_numbers, self._image_of = array("q"), array("q")
        self._order: NDArray[np.int64] | None = None
        if layout == "lines":
            for record, start, end, number in json_lines(self.text):
                self._take_record(record, start, end)
                self._line_numbers.append(number)
        else:
            self._walk()

    def _walk(self) -> None:
        takers: dict[str | None, Callable[[Any, int, int], None]] = {None: self._take_record}
        if self.layout != "results":
            takers = {"images": self._take_image, "categories": self._take_category}
            takers |= {} if self.layout == "info" else {"annotations": self._take_record}
        found = set[str | None]()
        for key, entries in sections(self.text):
            found.add(key)
            if take := takers.get(key):
                for entry, start, end in entries:
                    take(entry, start, end)
        for key, reason, remedy in _NEEDED.get(self.layout, ()):
            if key not in found:
                reason = reason if None not in found else "is a list, not an annotation file"
                raise InputError(reason, file=self.path, remedy=remedy)
        if self.listed:
            self.match(self)

    def _take_record(self, record: Any, start: int, end: int) -> None:
        self.records.add(start, end)
        if isinstance(record, dict):
            if (category_id := whole(record.get("category_id"))) is not None:
                self.used_categories.add(category_id)
            if isinstance(pieces := record.get("segmentation"), list):
                self.dropped_pieces += len(pieces) - len(with_area(pieces))
        by_name = self.layout in ("results", "lines")
        key = key_of(record, by_name=by_name)
        if key is None:
            self._image_of.append(_NO_IMAGE)
            return
        self._image_of.append(self.images.setdefault(key, len(self.images)))
        if by_name and isinstance(name := record.get("file_name"), str) and name:
            self.own_names.setdefault(key, name)

    def _take_image(self, entry: Any, start: int, end: int) -> None:
        if (image_id := id_of(entry, "id")) is None:
            self.faults.append(InputError("has no id", file=self.path, record=f"image {short(entry)}"))
            return
        if image_id in self.listed:
            self._repeated.add(image_id)
        self.listed[image_id] = len(self._entries)
        self._entries.add(start, end)

    def _take_category(self, entry: Any, start: int, end: int) -> None:
        raw_id = id_of(entry, "id")
        if (category_id := whole(raw_id)) is None or raw_id is None:
            self.faults.append(InputError("has no id", file=self.path, record=f"category {short(entry)}"))
            return
        where = f"category id {short(raw_id)}"
        if isinstance(entry := parse(self.text.read(start, end).decode()), Ambiguous):
            raise entry.error.at(self.path, where)
        if type(self._raw_ids.setdefault(category_id, raw_id)) is not type(raw_id):
            reason = "is there as a number and as text"
            raise InputError(reason, file=self.path, record=where, remedy="keep one of the two")
        name, is_thing = entry.get("name"), entry.get("isthing")
        self.categories[category_id] = name if isinstance(name, str) else f"class {category_id}"
        if whole(is_thing) == 0 or is_thing is False:
            self.stuff.add(category_id)
        if "frequency" in entry:
            self.frequencies[category_id] = str(entry["frequency"])

    def match(self, listing: CocoFile) -> None:
        """Takes ids and names of images for the ids that a listing has: 1 and "1" are one, if only one is listed."""
        new: dict[ImageKey, int] = {}
        numbers = [new.setdefault(listing.meant(key), len(new)) for key in self.images]
        if len(new) < len(numbers):
            images = np.frombuffer(self._image_of, np.int64)
            self._image_of = array("q", np.where(images < 0, images, np.array(numbers)[images]).tolist())
        self.images = new

    def meant(self, key: ImageKey) -> ImageKey:
        """The listed image that an id or a file name means; the key itself if there is none."""
        if isinstance(key, tuple):
            found = (self._by_name.get(name) for name in (key[0], PurePosixPath(key[0]).name))
            return next((image_id for image_id in found if image_id is not None), key)
        other = str(key) if isinstance(key, int) else whole(key)
        return other if key not in self.listed and other is not None and other in self.listed else key

    @cached_property
    def _by_name(self) -> dict[str, ImageId | None]:
        """Listed images by file name, and by its last part where only one has it."""
        found: dict[str, ImageId | None] = {}
        for image_id in self.listed:
            with suppress(InputError):
                name = next(iter(names_in(self.entry(image_id))), "")
                last = PurePosixPath(name).name
                found[last] = image_id if last not in found else None
                found[name] = image_id
        return found

    def entry(self, image_id: ImageId) -> dict[str, Any]:
        """What the file says of an image; raises InputError where it says nothing, or says so twice."""
        if image_id not in self.listed:
            numbers = isinstance(image_id, str) and all(isinstance(each, int) for each in self.listed)
            reason = f"{name_of(image_id)} is not among the images of {self.path.name}"
            reason += ", whose ids are numbers" * numbers
            raise InputError(reason, remedy="check that masks and images belong together")
        if image_id in self._repeated:
            reason = f"{name_of(image_id)} is listed twice"
            raise InputError(reason, file=self.path, remedy="keep one of the two")
        entry: dict[str, Any] = self._entries.value(self.listed[image_id])
        if isinstance(entry, Ambiguous):
            raise entry.error.at(self.path, name_of(image_id))
        return entry

    def raw(self, key: ImageKey | None) -> tuple[RawRecord, ...]:
        """The records of an image in the order of the file; for None those of no image at all."""
        if self._order is None:
            images = np.frombuffer(self._image_of, np.int64)
            self._order = np.argsort(images, kind="stable")
            self._bounds = np.searchsorted(images[self._order], np.arange(_NO_IMAGE, len(self.images) + 1))
        number = _NO_IMAGE if key is None else self.images.get(key)
        if number is None:
            return ()
        found: list[RawRecord] = []
        for index in self._order[self._bounds[number + 1] : self._bounds[number + 2]].tolist():
            try:
                found.append((index, self.label(index), self.records.text(index)))
            except InputError as error:
                found.append((index, self.label(index), error))
        return tuple(found)

    def rewrite(self, file: BinaryIO, texts: Iterable[tuple[int, str]]) -> None:
        """Writes the file again with other texts in the place of some records, which come in rising order."""
        at = 0
        for index, text in texts:
            start, end = self.records.place(index)
            file.writelines(self.text.pieces(at, start))
            file.write(text.encode())
            at = end
        file.writelines(self.text.pieces(at))
        self.text.check_unchanged()

    def label(self, index: int) -> str:
        """How a person finds a record that does not say so itself."""
        if self.layout == "lines":
            return f"line {self._line_numbers[index]}"
        return f"{'record' if self.layout == 'results' else 'annotation'} {index}"


def refuse(faults: Sequence[InputError]) -> None:
    """Raises one InputError that names all that is wrong; nothing is raised if nothing is."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        file, named = faults[0].file, list[str]()
        for error in faults[:_NAMED]:
            other = None if error.file == file else error.file
            named.append(": ".join(part for part in (other, error.record, error.reason) if part))
        named += [f"{len(faults) - _NAMED} more"] * (len(faults) > _NAMED)
        reason = f"{len(faults)} entries cannot be used: {'; '.join(named)}"
        raise InputError(reason, file=file, remedy="correct them or leave them out")


def id_of(entry: Any, key: str) -> ImageId | None:
    """The id under a key of an entry: text, or a number that is whole; None for all else."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, str) else whole(value)


def key_of(record: Any, *, by_name: bool = True) -> ImageKey | None:
    """Which image a record belongs to; a file name stands in for a missing id."""
    image_id = id_of(record, "image_id")
    if image_id is None and by_name and isinstance(record, dict) and record.get("image_id") is None:
        name = record.get("file_name")
        return (name,) if isinstance(name, str) and name else None
    return image_id


def name_of(key: ImageKey) -> str:
    """An image id for messages; text that looks like a number is marked as text."""
    if isinstance(key, tuple):
        return key[0]
    is_like_a_number = isinstance(key, str) and whole(key) is not None
    return f'image id "{key}" (text)' if is_like_a_number else f"image id {key}"


def is_crowd(record: Mapping[str, Any]) -> bool:
    """Whether a record is of a crowd; raises InputError where ``iscrowd`` is neither yes nor no."""
    value = record.get("iscrowd") or 0
    if (number := int(value) if type(value) is bool else whole(value)) not in (0, 1):
        raise InputError(f"iscrowd is {short(value)}", remedy="write 0 or 1")
    return number == 1


def category_of(record: Mapping[str, Any]) -> int | None:
    """The category of a record, None where it has none; raises InputError where it is no number."""
    value = record.get("category_id")
    if (number := whole(value)) is None and value is not None:
        raise InputError(f"category_id is {short(value)}", remedy="write the number of its category")
    return number


def finite(record: Mapping[str, Any], key: str) -> float | None:
    """The number under a key of a record, None where it has none; raises InputError where it is not finite."""
    value = record.get(key)
    # an int of hundreds of digits is too large for a float
    if value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max):
        return None if value is None else float(value)
    raise InputError(f"{key} is {short(value)}", remedy="write a finite number")


def names_in(entry: Mapping[str, Any]) -> list[str]:
    """An image's names, its own first; LVIS v1 has ``coco_url`` alone, whose last parts are COCO's folder and file."""
    file_name, url, path = (entry.get(key) for key in ("file_name", "coco_url", "path"))
    last_parts = "/".join(PurePosixPath(url).parts[-2:]) if isinstance(url, str) else None
    return [name for name in (file_name, last_parts, path) if isinstance(name, str) and name]
