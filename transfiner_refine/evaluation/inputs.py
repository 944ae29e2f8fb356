"""Truth and masks of any format that refine reads, as evaluation and the report need them.

COCO's files say of each record which image and class it is of. In other formats an image is known by its name without
its ending, a class by its name. Where a file has no classes (a folder of mask images), classes play no part at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from transfiner_refine.errors import InputError, NoMaskError, counted
from transfiner_refine.evaluation.coco_files import (
    Annotations,
    Entry,
    Image,
    load_annotations,
    load_results,
)
from transfiner_refine.formats.coco import refuse
from transfiner_refine.formats.records import ImageRecord, Instance, RecordFault, Source
from transfiner_refine.formats.registry import recognise
from transfiner_refine.images import SUFFIXES
from transfiner_refine.masks import Mask

Opener: TypeAlias = Callable[[Path], Source]
"""Opens masks of any format; ``formats.open_source``, with its options."""

_NO_CLASS = -1
ANY_CLASS = {1: "object"}
"""The one category where classes play no part."""


def read_inputs(
    annotations: str | Path, results: Sequence[str | Path], opened: Opener, *, tolerant: bool = False
) -> tuple[Annotations, list[list[Entry]]]:
    """The truth, and the masks of each of some files or folders.

    Raises InputError where one of them cannot be used, or has records that cannot; all are named. Where it is
    ``tolerant``, damaged masks in a folder are passed over.
    """
    truth = _truth(Path(annotations), opened)
    found = [_detections(Path(path), truth, opened, tolerant) for path in results]
    without = [entries and all(each.category_id == _NO_CLASS for each in entries) for entries in found]
    if truth.categories and not any(without):
        return truth, found
    notes = truth.notes
    if len(truth.categories) > 1:
        notes += ("The masks have no classes, so that the classes of the truth play no part.",)
    instances, *found = (
        [replace(each, category_id=1) for each in entries] for entries in (truth.instances, *found)
    )
    return replace(truth, categories=ANY_CLASS, instances=instances, notes=notes, others={}), found


def sound(source: Source, faults: list[InputError]) -> Iterator[ImageRecord]:
    """The images of a source; what is at fault goes into ``faults``."""
    for item in source:
        if isinstance(item, RecordFault):
            faults.append(item.error)
        else:
            yield item


def _is_coco(path: Path) -> bool:
    """Also what is no file of any format: COCO's reader says what is wrong with it."""
    try:
        name = recognise(path).name
    except InputError:
        return not path.is_dir()
    return name.startswith("coco-") and name != "coco-panoptic"


def _truth(path: Path, opened: Opener) -> Annotations:
    if _is_coco(path):
        return load_annotations(path)
    source, faults = opened(path), list[InputError]()
    images: dict[int, Image] = {}
    instances: list[Entry] = []
    stuff = 0
    for record in sound(source, faults):
        number, sizes = len(images) + 1, [each.mask.size for each in record.instances]
        size = record.size or next(iter(sizes), (0, 0))  # no size, for there is no mask to compare
        images[number] = Image(record.file_name or record.name, size, record.file_name or "")
        stuff += sum(each.is_stuff for each in record.instances)
        for each in record.instances:
            if not each.is_stuff:
                instances += _entry(each, number, each.index, each.category_id, size, faults, path)
    unusable = [fault for fault in faults if not isinstance(fault, NoMaskError)]
    refuse(unusable)
    has_classes = any(each.category_id != _NO_CLASS for each in instances)
    categories = dict(source.categories) if has_classes else {}
    for each in instances if has_classes else ():
        categories.setdefault(each.category_id, f"class {each.category_id}")
    notes = (
        f"{counted(stuff, 'region')} of stuff in the truth {'is' if stuff == 1 else 'are'} not counted.",
    )
    without = len(faults) - len(unusable)
    return Annotations(path, images, categories, {}, instances, without, None, notes=notes if stuff else ())


def _detections(path: Path, truth: Annotations, opened: Opener, tolerant: bool) -> list[Entry]:
    if truth.listing is not None and _is_coco(path):
        return load_results(path, truth)
    source, faults, found = opened(path), list[InputError](), list[Entry]()
    numbers: dict[str, int | None] = {}
    for number, image in truth.images.items():
        name = _stem(image.file_name or str(image.id))
        last = PurePosixPath(name).name
        numbers[last] = None if last in numbers else number
        numbers[name] = number
    ids = {name: category_id for category_id, name in (truth.categories | truth.others).items()}
    for record in sound(source, faults):
        name = _stem(record.file_name or record.name)
        place = numbers.get(name) or numbers.get(PurePosixPath(name).name)
        instances = [each for each in record.instances if not each.is_crowd and not each.is_stuff]
        if place is None and instances and truth.listing is not None:
            reason = f"image {record.file_name or record.name} is not among those of {truth.file.name}"
            faults.append(InputError(reason, file=path, record=instances[0].label))
            continue
        if place is None:  # an image in which nothing is to be found
            place = numbers[name] = len(truth.images) + 1
            truth.images[place] = Image(name, record.size or (0, 0), record.file_name or "")
        for each in instances:
            category_id = each.category_id
            called = None if category_id is None else source.categories.get(category_id)
            if called in ids:
                category_id = ids[called]
            elif called is not None and truth.categories.get(category_id or 0) != f"class {category_id}":
                category_id = ids[called] = max((*truth.categories, *truth.others), default=0) + 1
                truth.others[category_id] = called
            size = truth.images[place].size
            found += _entry(each, place, each.instance_id, category_id, size, faults, path)
    refuse([] if tolerant else faults)
    return sorted(found, key=lambda each: each.index)


def _entry(
    each: Instance,
    number: int,
    instance_id: int | None,
    category_id: int | None,
    size: tuple[int, int],
    faults: list[InputError],
    path: Path,
) -> list[Entry]:
    """An instance of image ``number``; nothing if its mask cannot be used: that goes into ``faults``."""
    try:
        mask = each.mask if isinstance(each.mask, Mask) else Mask.from_window(each.mask.decode())
        if size not in ((0, 0), mask.size):
            reason = f"mask of size {list(mask.size)} in an image of {list(size)} (height, width)"
            raise InputError(reason)
    except InputError as error:
        faults.append(error.at(error.file or path, error.record or each.label))
        return []
    entry = Entry(
        each.index, mask, each.label, _NO_CLASS if category_id is None else category_id, each.score,
        each.is_crowd, instance_id, area=mask.area, image_id=number,
    )  # fmt: skip
    return [entry]


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("") if path.suffix.lower() in SUFFIXES else path)
