"""COCO's files, LVIS's among them, read for every command: results (a list, or one a line) and annotations."""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError, short
from transfiner_refine.formats.json_stream import (
    Ambiguous,
    Entries,
    JsonValues,
    TextFile,
    is_wide,
    json_lines,
    look_into,
    parse,
    sections,
    whole,
)
from transfiner_refine.formats.records import ImageRecord, Instance
from transfiner_refine.formats.segmentation import masks_from_segmentations
from transfiner_refine.images import ImageFolder
from transfiner_refine.masks import Mask

ImageId = int | str
ImageKey = ImageId | tuple[str]  # of records without an image_id: the file name that they state
Layout = Literal["results", "lines", "annotations"]
RawRecord = tuple[int, str, str | InputError]
"""Index and label of a record, and its text or why there is none."""

_LARGEST = sys.float_info.max
_SIZE = re.compile(r'"size"\s*:\s*\[\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\]')
_ANNOTATIONS = re.compile(rb'"annotations"\s*:\s*\[')
_LOOK = 1 << 16  # bytes of annotations in which one of them says what they are
_LINES = 9  # lines of which half must be results, where the first is none
_NO_IMAGE = -1
_NAMED = 20  # records at fault that one message names


def layout_of(path: Path) -> Layout | Literal["panoptic"] | None:
    """Which kind of COCO file a file is, from its first bytes; None if it is none. Reading it says what is wrong."""
    pieces = look_into(path)
    start = next((text for piece in pieces if (text := piece.lstrip())), b"")
    if start.startswith(b"["):
        return "results"
    if is_wide(start):
        return "annotations"
    if not start.startswith(b"{"):
        return None
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
        return _key_of(parse(line.decode()), by_name=True) is not None
    except (InputError, UnicodeDecodeError):
        return False


class Listing:
    """The images and categories of an annotation file. Entries of images are held as places in the text.

    Attributes:
        images: place of each image's entry by its id, in the order of the file.
        categories: names by id.
        stuff: ids of categories that are no things (``isthing`` 0).
        frequencies: LVIS's "r", "c" or "f" by category id.
        faults: entries without an id; they are passed over.
    """

    def __init__(self, text: TextFile) -> None:
        self.images: dict[ImageId, int] = {}
        self.categories: dict[int, str] = {}
        self.stuff: set[int] = set()
        self.frequencies: dict[int, str] = {}
        self.faults: list[InputError] = []
        self._text, self._entries, self._repeated = text, JsonValues(text), set[ImageId]()
        self._raw_ids: dict[int, object] = {}

    def take(self, key: str | None, entries: Entries | None) -> None:
        """Takes a section of the file if it is one of the two.

        Raises:
            InputError: it is not valid JSON, or a category comes twice as a number and as text.
        """
        if entries is None or key not in ("images", "categories"):
            return
        for place, (entry, start, end) in enumerate(entries):
            if (entry_id := id_of(entry, "id")) is None:
                where = f"{'image' if key == 'images' else 'category'} {place}"
                self.faults.append(InputError("has no id", file=self._text.path, record=where))
            elif key == "categories":
                self._take_category(entry_id, parse(self._text.read(start, end).decode()))
            else:
                if entry_id in self.images:
                    self._repeated.add(entry_id)
                self.images[entry_id] = len(self._entries)
                self._entries.add(start, end)

    def _take_category(self, raw_id: ImageId, entry: dict[str, Any]) -> None:
        where, category_id = f"category id {short(raw_id)}", whole(raw_id)
        if isinstance(entry, Ambiguous):
            raise entry.error.at(self._text.path, where)
        if category_id is None:
            self.faults.append(InputError("is no number", file=self._text.path, record=where))
            return
        if type(self._raw_ids.setdefault(category_id, raw_id)) is not type(raw_id):
            reason = "is there as a number and as text"
            raise InputError(reason, file=self._text.path, record=where, remedy="keep one of the two")
        name = entry.get("name")
        self.categories[category_id] = name if isinstance(name, str) else f"class {category_id}"
        if whole(entry.get("isthing")) == 0 or entry.get("isthing") is False:
            self.stuff.add(category_id)
        if "frequency" in entry:
            self.frequencies[category_id] = str(entry["frequency"])

    def meant(self, key: ImageKey) -> ImageKey:
        """The listed image that an id or a file name means; 1 and "1" are one where only one of them is listed."""
        if isinstance(key, tuple):
            found = (self._by_name.get(name) for name in (key[0], PurePosixPath(key[0]).name))
            return next((image_id for image_id in found if image_id is not None), key)
        other = str(key) if isinstance(key, int) else whole(key)
        return key if key in self.images or other not in self.images or other is None else other

    @cached_property
    def _by_name(self) -> dict[str, ImageId | None]:
        """Images by file name, and by its last part where only one has it."""
        found: dict[str, ImageId | None] = {}
        for image_id in self.images:
            with suppress(InputError):
                name = _file_name(self.entry(image_id)) or ""
                last = PurePosixPath(name).name
                found[last] = image_id if last not in found else None
                found[name] = image_id
        return found

    def entry(self, image_id: ImageId) -> dict[str, Any]:
        """What the file says of an image.

        Raises:
            InputError: nothing, or it says so twice.
        """
        file = self._text.path
        if image_id not in self.images:
            numbers = isinstance(image_id, str) and all(isinstance(each, int) for each in self.images)
            reason = f"{name_of(image_id)} is not among the images{', whose ids are numbers' * numbers}"
            raise InputError(reason, file=file, remedy="check that masks and images belong together")
        if image_id in self._repeated:
            reason = f"{name_of(image_id)} is listed twice"
            raise InputError(reason, file=file, remedy="keep one of the two")
        entry = self._entries.value(self.images[image_id])
        if isinstance(entry, Ambiguous):
            raise entry.error.at(file, name_of(image_id))
        assert isinstance(entry, dict)
        return entry


def read_listing(path: Path) -> Listing:
    """The images and categories of an annotation file, whose annotations are passed over.

    Raises:
        InputError: it cannot be read, or is no annotation file.
    """
    text = TextFile(path)
    listing, found = Listing(text), False
    for key, entries in sections(text):
        listing.take(key, entries)
        found |= key == "images" and entries is not None
    if not found:
        raise InputError("has no list of images", file=path, remedy="give a COCO annotation file")
    return listing


def find_image(
    key: ImageKey, listing: Listing | None, own_name: str | None, folder: ImageFolder | None
) -> ImageRecord:
    """An image without instances, as far as it is known.

    Args:
        key: its id.
        listing: what an annotation file says; None without one.
        own_name: the file name that the records themselves state, looked at without ``listing``.
        folder: the photos; None where they do not matter.

    Raises:
        InputError: the listing does not have the id, or the photo is not in the folder.
    """
    file_name, size = own_name, None
    if isinstance(key, tuple):
        (file_name,) = key
    elif listing is not None:
        entry = listing.entry(key)
        file_name, size = _file_name(entry), stated_size(entry)
    image_id = None if isinstance(key, tuple) else key
    name = file_name or name_of(key)
    if folder is None:
        return ImageRecord(None, name, (), size, image_id, file_name)
    if file_name is not None:
        path = folder.named(file_name)
    else:
        assert image_id is not None
        path = folder.with_id(image_id)
    return ImageRecord(path, name, (), size, image_id, file_name or path.relative_to(folder.root).as_posix())


def check_any_found(keys: Iterable[ImageKey], find: Callable[[ImageKey], object]) -> None:
    """Looks for photos until one is found: with none at all, something is wrong with the input as a whole.

    Raises:
        InputError: there are images, and ``find`` finds none of them.
    """
    first, count = None, 0
    for key in keys:
        try:
            find(key)
        except InputError as error:
            first, count = first or error, count + 1
        else:
            return
    if first is not None:
        reason = first.reason if count == 1 else f"none of the {count} images was found; {first.reason}"
        raise InputError(reason, file=first.file, record=first.record, remedy=first.remedy)


def id_of(entry: Any, key: str) -> ImageId | None:
    """The id under a key of an entry: text, or a number that is whole; None for all else."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, str) else whole(value)


def name_of(key: ImageKey) -> str:
    """An image id for messages; text that looks like a number is marked as text."""
    if isinstance(key, tuple):
        return key[0]
    return (
        f'image id "{key}" (text)' if isinstance(key, str) and whole(key) is not None else f"image id {key}"
    )


def stated_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) that an entry of an image states, pixels."""
    height, width = whole(entry.get("height")) or 0, whole(entry.get("width")) or 0
    return (height, width) if height > 0 and width > 0 else None


def _file_name(entry: dict[str, Any]) -> str | None:
    """The photo's name; LVIS v1 has ``coco_url`` instead, whose last parts are COCO's folder and file."""
    file_name, url = entry.get("file_name"), entry.get("coco_url")
    if isinstance(file_name, str) and file_name:
        return file_name
    return "/".join(PurePosixPath(url).parts[-2:]) if isinstance(url, str) and url else None


def _key_of(record: Any, *, by_name: bool) -> ImageKey | None:
    """Which image a record belongs to; a file name stands in for a missing id."""
    if (image_id := id_of(record, "image_id")) is not None:
        return image_id
    if by_name and isinstance(record, dict) and record.get("image_id") is None:
        name = record.get("file_name")
        return (name,) if isinstance(name, str) and name else None
    return None


class CocoFile:
    """A COCO file, walked over once: where each record is, and which image it belongs to. No record is held parsed.

    Attributes:
        path: the file, plain or gzip.
        text: its text.
        layout: its kind.
        records: places of the records.
        images: the images that have records, in the order in which they first occur.
        own_names: file names that results state for their images.
        listing: for an annotation file, what else it says.
    """

    def __init__(self, path: Path, layout: Layout | None = None) -> None:
        """Args: ``path`` is the file; ``layout`` its kind, None to tell it by the content.

        Raises:
            InputError: it cannot be read, is not valid JSON, or not of that kind.
        """
        if layout is None:
            layout = "annotations" if (told := layout_of(path)) is None or told == "panoptic" else told
        self.path, self.layout, self.text = path, layout, TextFile(path)
        self.records = JsonValues(self.text)
        self.images: dict[ImageKey, int] = {}
        self.own_names: dict[ImageKey, str] = {}
        self.listing: Listing | None = None
        self._line_numbers, self._image_of = array("q"), array("q")
        self._order: NDArray[np.int64] | None = None
        if layout == "lines":
            for record, start, end, number in json_lines(self.text):
                self._add(record, start, end)
                self._line_numbers.append(number)
        else:
            self._walk()

    def _walk(self) -> None:
        listing, found = Listing(self.text), set[str | None]()
        for key, entries in sections(self.text):
            listing.take(key, entries)
            if entries is None:
                continue
            found.add(key)
            if key == (None if self.layout == "results" else "annotations"):
                for record, start, end in entries:
                    self._add(record, start, end)
        if self.layout == "results":
            if None in found:
                return
            raise InputError(
                "is no list of results", file=self.path, remedy="leave --from out, or correct it"
            )
        if "images" not in found:
            what = "is no COCO file: neither a list of results nor an object with images and annotations"
            what = what if None not in found else "is a list, not an annotation file"
            raise InputError(what, file=self.path, remedy="give COCO results or annotations")
        if "annotations" not in found:
            reason, remedy = "has no list of annotations", "give results or annotations"
            raise InputError(reason, file=self.path, remedy=remedy)
        self.listing = listing
        self.match(listing)

    def _add(self, record: Any, start: int, end: int) -> None:
        self.records.add(start, end)
        key = _key_of(record, by_name=self.layout != "annotations")
        if key is None:
            self._image_of.append(_NO_IMAGE)
            return
        self._image_of.append(self.images.setdefault(key, len(self.images)))
        if isinstance(name := record.get("file_name"), str) and name:
            self.own_names.setdefault(key, name)

    def match(self, listing: Listing) -> None:
        """Takes ids and names of images for the ids that a listing has."""
        new: dict[ImageKey, int] = {}
        numbers = [new.setdefault(listing.meant(key), len(new)) for key in self.images]
        if len(new) < len(numbers):
            images = np.frombuffer(self._image_of, np.int64)
            self._image_of = array("q", np.where(images < 0, images, np.array(numbers)[images]).tolist())
        self.images = new

    def of_image(self, key: ImageKey | None) -> list[int]:
        """The records of an image in the order of the file; for None those of no image at all."""
        if self._order is None:
            images = np.frombuffer(self._image_of, np.int64)
            self._order = np.argsort(images, kind="stable")
            self._bounds = np.searchsorted(images[self._order], np.arange(_NO_IMAGE, len(self.images) + 1))
        number = _NO_IMAGE if key is None else self.images.get(key)
        if number is None:
            return []
        found: list[int] = self._order[self._bounds[number + 1] : self._bounds[number + 2]].tolist()
        return found

    def raw(self, key: ImageKey | None) -> tuple[RawRecord, ...]:
        """The records of an image, unparsed."""
        found: list[RawRecord] = []
        for index in self.of_image(key):
            try:
                text: str | InputError = self.records.text(index)
            except InputError as error:
                text = error
            found.append((index, self.label(index), text))
        return tuple(found)

    def label(self, index: int) -> str:
        """How a person finds a record that does not say so itself."""
        if self.layout == "lines":
            return f"line {self._line_numbers[index]}"
        return f"{'annotation' if self.layout == 'annotations' else 'record'} {index}"

    def homeless(self) -> Iterator[InputError]:
        """Why records belong to no image."""
        for _, label, text in self.raw(None):
            record = None
            try:
                record = parse(text) if isinstance(text, str) else None
                reason = "is no JSON object"
                if isinstance(record, dict):
                    reason = f"image_id is {short(record.get('image_id'))}"
                error = (
                    text
                    if isinstance(text, InputError)
                    else InputError(reason, remedy="write the id of its image into the record")
                )
            except InputError as invalid:
                error = invalid
            yield error.at(self.path, _own_label(label, record, self.layout))


def read_records(
    raw: Sequence[RawRecord], file: Path, layout: Layout, image_size: Callable[[], tuple[int, int]],
    stuff: Collection[int] = (),
) -> list[tuple[Any, Instance | InputError]]:  # fmt: skip
    """Records parsed: the JSON of each, and its instance or what is wrong with it. Masks are parsed together.

    Args:
        raw: records of one image.
        file: where they come from.
        layout: its kind.
        image_size: gives (height, width) of the image, pixels; asked only for polygons.
        stuff: ids of categories that are no things.
    """
    parsed: list[Any] = []
    for _, _, text in raw:
        try:
            parsed.append(text if isinstance(text, InputError) else parse(text))
        except InputError as error:
            parsed.append(error)
    segmentations = [each.get("segmentation") if isinstance(each, dict) else None for each in parsed]
    masks = masks_from_segmentations(segmentations, image_size)
    found: list[tuple[Any, Instance | InputError]] = []
    for (index, label, _), record, segmentation, mask in zip(raw, parsed, segmentations, masks, strict=True):
        label = _own_label(label, record, layout)
        try:
            for part in (record, segmentation, mask):
                if isinstance(part, (Ambiguous, InputError)):
                    raise part.error if isinstance(part, Ambiguous) else part
            assert isinstance(mask, Mask)
            found.append((record, _instance_of(record, index, label, mask, stuff)))
        except InputError as error:
            found.append((record, error.at(error.file or file, error.record or label)))
    return found


def _instance_of(record: Any, index: int, label: str, mask: Mask, stuff: Collection[int]) -> Instance:
    category_id = whole(record.get("category_id"))
    return Instance(
        index=index,
        mask=mask,
        label=label,
        category_id=category_id,
        score=finite(record, "score"),
        is_crowd=is_crowd(record),
        instance_id=whole(record.get("id")),
        is_stuff=category_id in stuff,
    )


def is_crowd(record: Mapping[str, Any]) -> bool:
    """Whether a record is of a group."""
    value = record.get("iscrowd")
    return bool(value) and whole(value) != 0


def finite(record: Mapping[str, Any], key: str) -> float | None:
    """The number under a key of a record, None where it has none.

    Raises:
        InputError: it is no finite number.
    """
    value = record.get(key)
    # an int of hundreds of digits is too large for a float
    if value is None or (type(value) in (int, float) and -_LARGEST <= value <= _LARGEST):
        return None if value is None else float(value)
    raise InputError(f"{key} is {short(value)}", remedy="write a finite number")


def _own_label(label: str, record: Any, layout: Layout) -> str:
    """How a person finds a record: by its own id where it is an annotation that has one."""
    if layout == "annotations" and isinstance(record, dict) and "id" in record:
        return f"annotation id {short(record['id'])}"
    return label


def sound_records(
    file: CocoFile,
    size_of: Callable[[ImageKey], tuple[int, int] | None],
    faults: list[InputError],
    *,
    crowds: bool,
) -> Iterator[tuple[ImageKey, Instance, Mask, Mapping[str, Any]]]:
    """Image, instance, mask and JSON of each record, image by image, for what needs a file as a whole.

    Args:
        file: the file.
        size_of: gives (height, width) of an image, which its masks must have; None to leave its records out;
            raises InputError where the image is unknown.
        faults: takes what is wrong with the others; ``refuse`` says it.
        crowds: give them too.
    """
    faults += file.homeless()
    for key in file.images:
        unknown: InputError | None = None
        size: tuple[int, int] | None = (1, 1)
        try:
            size = size_of(key)
        except InputError as error:
            unknown = error
        if size is None:
            continue
        raw, expected = file.raw(key), size
        read = read_records(raw, file.path, file.layout, lambda: expected)  # noqa: B023  called at once
        for (_, label, _), (record, found) in zip(raw, read, strict=True):
            if not crowds and isinstance(record, dict) and is_crowd(record):
                continue
            label = _own_label(label, record, file.layout)
            if unknown is not None:
                faults.append(unknown.at(unknown.file or file.path, unknown.record or label))
                if unknown.file:  # it is the image's, and said once
                    break
            elif isinstance(found, InputError):
                faults.append(found)
            elif found.mask.size != expected:
                reason = (
                    f"mask of size {list(found.mask.size)} in an image of {list(expected)} (height, width)"
                )
                faults.append(InputError(reason, file=file.path, record=label))
            else:
                assert isinstance(found.mask, Mask)
                yield key, found, found.mask, record


def refuse(faults: Sequence[InputError]) -> None:
    """Raises one InputError that names all records at fault; nothing is raised if there are none."""
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
