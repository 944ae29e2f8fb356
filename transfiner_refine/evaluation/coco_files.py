"""COCO and LVIS files as evaluation needs them: true instances and detections, every record checked once.

Records shrink to what is scored. Above all ``bbox`` stays behind: with one, COCO's evaluators take a
detection's area from its box, and AP by size then follows the detector's boxes instead of the masks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from transfiner_refine.errors import InputError, NoMaskError, short
from transfiner_refine.formats.coco import CocoFile, ImageId, finite, refuse
from transfiner_refine.formats.coco_records import CocoInstance, mask_values
from transfiner_refine.formats.coco_source import CocoSource, sound_images
from transfiner_refine.formats.json_stream import sections, whole
from transfiner_refine.formats.text_file import TextFile

rle_of = mask_values


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the annotation file."""

    id: ImageId  # as the file has it
    size: tuple[int, int]  # (height, width), pixels
    file_name: str = ""  # as the file has it (LVIS: the end of ``coco_url``), "" where it has none
    absent: tuple[int, ...] = ()  # LVIS: categories known not to be in it (``neg_category_ids``)
    incomplete: tuple[int, ...] = ()  # LVIS: not marked exhaustively (``not_exhaustive_category_ids``)


@dataclass(frozen=True)
class Entry(CocoInstance):
    """A true mask or a detection; ``mask`` is of its image's size, ``index`` is that of its record."""

    image_id: int = 0  # a key of ``Annotations.images``
    category_id: int = 0
    area: float = 0.0  # as the file has it, as AP takes it (COCO's are of the polygon, not of its pixels)
    annotation_id: int | None = None  # the true instance that a detection says it belongs to


@dataclass(frozen=True)
class Annotations:
    """An annotation file."""

    file: Path
    images: dict[int, Image]  # by image id; by 1, 2, 3 ... where an id is text, which AP does not take
    categories: dict[int, str]  # names by category id
    frequencies: dict[int, str]  # LVIS's "r", "c" or "f" by category id; empty for a file that is not LVIS's
    instances: list[Entry]  # crowds included, in the order of the file
    without_mask: int  # number of annotations that have none, and so are not among the instances
    listing: CocoFile | None = field(repr=False, compare=False)  # for reading COCO results of its images
    others: dict[int, str] = field(
        default_factory=dict
    )  # names of classes that masks have and the truth has not
    notes: tuple[str, ...] = ()  # sentences that say what plays no part

    @property
    def is_lvis(self) -> bool:
        """LVIS annotations: not every category is marked in every image, so AP is taken the federated way."""
        return bool(self.frequencies)


def load_annotations(path: str | Path) -> Annotations:
    """Reads a COCO or LVIS annotation file; annotations without a mask, such as boxes, are counted and left out.

    Raises:
        InputError: no such file, not an annotation file, or records that cannot be used; all are named.
    """
    source = CocoSource(Path(path), layout="annotations")
    file, categories, faults, is_lvis = source.file, source.categories, list(source.file.faults), False
    if not categories:
        remedy = "--annotations takes a COCO file with images, annotations and categories"
        raise InputError("not an annotation file: no categories", file=path, remedy=remedy)
    are_numbers = all(isinstance(image_id, int) for image_id in file.listed)
    images: dict[int, Image] = {}
    found: list[Entry] = []
    for image, instances in sound_images(source, faults):
        assert image.image_id is not None
        assert image.size is not None
        number = image.image_id if are_numbers and isinstance(image.image_id, int) else len(images) + 1
        entry = file.entry(image.image_id)
        lists = [_numbers(entry.get(f"{key}_category_ids")) for key in ("neg", "not_exhaustive")]
        is_lvis |= bool(file.frequencies) and "neg_category_ids" in entry
        images[number] = Image(image.image_id, image.size, image.file_name or "", *lists)
        for each in instances:
            try:
                if (category_id := each.category_id) is None or category_id not in categories:
                    raise InputError(f"category id {each.category_id} is not among the categories")
                if each.instance_id is None:
                    raise InputError("has no id that is a number")
                area = finite({"area": each.area}, "area")
            except InputError as error:
                faults.append(error.at(file.path, each.label))
                continue
            known = {"area": each.mask.area if area is None else area, "annotation_id": None}
            found.append(Entry(**{**vars(each), **known, "image_id": number, "category_id": category_id}))
    unusable = [fault for fault in faults if not isinstance(fault, NoMaskError)]
    refuse(unusable)
    names = {key: name.encode("utf-8", "backslashreplace").decode() for key, name in categories.items()}
    frequencies, number = file.frequencies if is_lvis else {}, len(faults) - len(unusable)
    found.sort(key=attrgetter("index"))
    return Annotations(file.path, images, names, frequencies, found, number, file)


def load_results(path: str | Path, annotations: Annotations) -> list[Entry]:
    """Reads detections of annotated images: COCO results of any kind, or the annotations of an annotation file.

    Crowd regions of an annotation file are no detections and are left out.

    Raises:
        InputError: no such file, invalid JSON, or records that cannot be used; all are named.
    """
    source, faults = CocoSource(Path(path), listing=annotations.listing), list[InputError]()
    numbers: dict[ImageId | None, int] = {image.id: number for number, image in annotations.images.items()}
    found: list[Entry] = []
    for image, instances in sound_images(source, faults):
        for each in instances:
            if each.is_crowd:
                continue
            annotation_id = whole(each.annotation_id)
            reason = "has no category_id that is a number" if each.category_id is None else ""
            if annotation_id is None and each.annotation_id is not None:
                reason = f"annotation_id is {short(each.annotation_id)}"
            if each.category_id is None or reason:
                faults.append(InputError(reason, file=path, record=each.label))
                continue
            known = {"image_id": numbers[image.image_id], "annotation_id": annotation_id}
            found.append(Entry(**{**vars(each), **known, "area": each.mask.area}))
    refuse(faults)
    return sorted(found, key=attrgetter("index"))


def load_match(path: str | Path, length: int) -> list[int | None]:
    """Reads which annotation each of ``length`` records of a results file belongs to, None for none.

    The file is a JSON list of ``{"annotation_id": …}`` or of plain ids, one for each record.

    Raises:
        InputError: no such file, invalid JSON, another length, or entries that are no ids; all are named.
    """
    content: list[Any] | None = None
    for key, entries in sections(TextFile(Path(path))):
        if key is None:
            content = [entry for entry, _, _ in entries]
    if content is None or len(content) != length:
        reason = f"{'no list' if content is None else f'{len(content)} entries'} for {length} results"
        raise InputError(reason, file=path, remedy="a match file has one for each result")
    values = [entry.get("annotation_id") if isinstance(entry, dict) else entry for entry in content]
    no_ids = [n for n, value in enumerate(values) if value is not None and whole(value) is None]
    refuse(
        [InputError(f"annotation_id is {short(values[n])}", file=path, record=f"entry {n}") for n in no_ids]
    )
    return [whole(value) for value in values]


def _numbers(values: object) -> tuple[int, ...]:
    found = map(whole, values) if isinstance(values, list) else ()
    return tuple(number for number in found if number is not None)
