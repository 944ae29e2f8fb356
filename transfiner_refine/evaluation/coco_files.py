"""COCO and LVIS files as evaluation needs them: true instances and detections, every record checked once.

Records shrink to what is scored. Above all ``bbox`` stays behind: with one, COCO's evaluators take a
detection's area from its box, and AP by size then follows the detector's boxes instead of the masks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from transfiner_refine.errors import InputError, short
from transfiner_refine.formats.coco import (
    CocoFile,
    ImageId,
    ImageKey,
    Listing,
    finite,
    name_of,
    refuse,
    sound_records,
    stated_size,
)
from transfiner_refine.formats.coco_source import mask_values
from transfiner_refine.formats.json_stream import TextFile, sections, whole
from transfiner_refine.masks import Mask

__all__ = [
    "Annotations",
    "Detection",
    "Image",
    "TrueInstance",
    "load_annotations",
    "load_match",
    "load_results",
    "rle_of",
]

rle_of = mask_values


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the annotation file.

    Attributes:
        size: (height, width), pixels.
        file_name: as the file has it, "" where it has none.
        absent: LVIS: categories known not to be in it (``neg_category_ids``).
        incomplete: LVIS: categories not marked exhaustively (``not_exhaustive_category_ids``).
        id: as the file has it.
    """

    size: tuple[int, int]
    file_name: str = ""
    absent: tuple[int, ...] = ()
    incomplete: tuple[int, ...] = ()
    id: ImageId = 0


@dataclass(frozen=True, slots=True)
class TrueInstance:
    """A true mask; ``area`` is the file's, as AP takes it (COCO's are of the polygon, not of its pixels)."""

    id: int
    image_id: int
    category_id: int
    mask: Mask
    area: float
    is_crowd: bool


@dataclass(frozen=True, slots=True)
class Detection:
    """One record of a results file.

    Attributes:
        record: its index in the file.
        mask: of its image's size.
        score: None where the file has none.
        annotation_id: the true instance the record says it belongs to, None where it says nothing.
    """

    record: int
    image_id: int
    category_id: int
    mask: Mask
    score: float | None
    annotation_id: int | None


@dataclass(frozen=True)
class Annotations:
    """An annotation file.

    Attributes:
        file: where it was read from.
        images: by image id; by 1, 2, 3 ... where an id is text, which AP does not take.
        categories: names by category id.
        frequencies: LVIS's "r", "c" or "f" by category id; empty for a file that is not LVIS's.
        instances: crowds included, in the order of the file.
        listing: the file's own words on its images.
    """

    file: Path
    images: dict[int, Image]
    categories: dict[int, str]
    frequencies: dict[int, str]
    instances: list[TrueInstance]
    listing: Listing = field(repr=False, compare=False)

    @property
    def is_lvis(self) -> bool:
        """LVIS annotations: not every category is marked in every image, so AP is taken the federated way."""
        return bool(self.frequencies)


def load_annotations(path: str | Path) -> Annotations:
    """Reads a COCO or LVIS annotation file.

    Raises:
        InputError: no such file, invalid JSON, not an annotation file, or records that cannot be used; all are named.
    """
    file = CocoFile(Path(path), "annotations")
    listing = file.listing
    assert listing is not None
    if not listing.categories:
        remedy = "--annotations takes a COCO file with images, annotations and categories"
        raise InputError("not an annotation file: no categories", file=path, remedy=remedy)
    faults = list(listing.faults)
    images: dict[ImageKey, Image] = {}
    is_lvis = False
    for image_id in listing.images:
        try:
            entry = listing.entry(image_id)
            if (size := stated_size(entry)) is None:
                raise InputError("no height or width", file=path, record=name_of(image_id))
        except InputError as error:
            faults.append(error)
            continue
        is_lvis |= bool(listing.frequencies) and "neg_category_ids" in entry
        name = entry.get("file_name")
        images[image_id] = Image(
            size,
            name if isinstance(name, str) else "",
            _numbers(entry.get("neg_category_ids")),
            _numbers(entry.get("not_exhaustive_category_ids")),
            image_id,
        )
    are_numbers = all(type(image_id) is int for image_id in images)
    numbers = {
        key: key if are_numbers and isinstance(key, int) else place for place, key in enumerate(images, 1)
    }

    def size_of(key: ImageKey) -> tuple[int, int] | None:
        if key not in listing.images:
            raise InputError(f"{name_of(key)} is not among the images")
        return images[key].size if key in images else None

    rows: list[tuple[int, TrueInstance]] = []
    for key, instance, mask, record in sound_records(file, size_of, faults, crowds=True):
        try:
            if (category_id := instance.category_id) not in listing.categories:
                found = short(record.get("category_id"))
                raise InputError(f"category id {found} is not among the categories")
            if instance.instance_id is None:
                raise InputError(f"id is {short(record.get('id'))}")
            area = finite(record, "area")
            area = mask.area if area is None else area
        except InputError as error:
            faults.append(error.at(file.path, instance.label))
            continue
        row = TrueInstance(instance.instance_id, numbers[key], category_id, mask, area, instance.is_crowd)
        rows.append((instance.index, row))
    refuse(faults)
    rows.sort(key=itemgetter(0))
    return Annotations(
        file.path,
        {numbers[key]: image for key, image in images.items()},
        {key: name.encode("utf-8", "backslashreplace").decode() for key, name in listing.categories.items()},
        listing.frequencies if is_lvis else {},
        [row for _, row in rows],
        listing,
    )


def load_results(path: str | Path, annotations: Annotations) -> list[Detection]:
    """Reads detections of annotated images: COCO results of any kind, or the annotations of an annotation file.

    Crowd regions of an annotation file are no detections and are left out.

    Raises:
        InputError: no such file, invalid JSON, or records that cannot be used; all are named.
    """
    file = CocoFile(Path(path))
    file.match(annotations.listing)
    numbers: dict[ImageKey, int] = {image.id: key for key, image in annotations.images.items()}

    def number_of(key: ImageKey) -> int:
        if (number := numbers.get(key)) is None:
            raise InputError(f"{name_of(key)} is not in {annotations.file}")
        return number

    faults: list[InputError] = []
    found: list[Detection] = []
    size_of = lambda key: annotations.images[number_of(key)].size  # noqa: E731
    for key, instance, mask, record in sound_records(file, size_of, faults, crowds=False):
        annotation_id = whole(record.get("annotation_id"))
        for name, value in (("category_id", instance.category_id), ("annotation_id", annotation_id)):
            if value is None and (name == "category_id" or record.get(name) is not None):
                reason = f"{name} is {short(record.get(name))}"
                faults.append(InputError(reason, file=file.path, record=instance.label))
                break
        else:
            assert instance.category_id is not None
            found.append(
                Detection(
                    instance.index,
                    number_of(key),
                    instance.category_id,
                    mask,
                    instance.score,
                    annotation_id,
                )
            )
    refuse(faults)
    return sorted(found, key=attrgetter("record"))


def load_match(path: str | Path, length: int) -> list[int | None]:
    """Reads which annotation each record of a results file belongs to.

    Args:
        path: a JSON list as long as the results, of ``{"annotation_id": …}`` or of plain ids; null for none.
        length: number of records in the results file.

    Raises:
        InputError: no such file, invalid JSON, another length, or entries that are no ids; all are named.
    """
    path = Path(path)
    content: list[Any] | None = None
    for key, entries in sections(TextFile(path)):
        if key is None and entries is not None:
            content = [value for value, _, _ in entries]
    if content is None or len(content) != length:
        found = "no list" if content is None else f"{len(content)} entries"
        raise InputError(
            f"{found} for {length} results", file=path, remedy="a match file has one for each result"
        )
    values = [entry.get("annotation_id") if isinstance(entry, dict) else entry for entry in content]
    faults = [
        InputError(f"annotation_id is {short(value)}", file=path, record=f"entry {index}")
        for index, value in enumerate(values)
        if value is not None and whole(value) is None
    ]
    refuse(faults)
    return [whole(value) for value in values]


def _numbers(values: object) -> tuple[int, ...]:
    found = map(whole, values) if isinstance(values, list) else ()
    return tuple(number for number in found if number is not None)
