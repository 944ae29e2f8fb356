"""COCO's formats in the registry, and what any source holds written as one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from transfiner_refine.errors import InputError
from transfiner_refine.formats.coco import ImageId, Layout, layout_of
from transfiner_refine.formats.coco_records import mask_values
from transfiner_refine.formats.coco_source import CocoSource
from transfiner_refine.formats.json_stream import compact
from transfiner_refine.formats.records import (
    Format,
    ImageRecord,
    Instance,
    OpenOptions,
    RecordFault,
    Source,
    UnreadSource,
    Written,
)
from transfiner_refine.formats.text_file import text_output
from transfiner_refine.images import image_sizes
from transfiner_refine.masks import Mask

NO_SCORE = 1.0  # what results state for an instance whose source has no scores; pycocotools needs one
_LONGEST_NUMBER = 18  # digits of a file name that is taken for a number


class Ids:
    """Ids for images, categories and instances of a source.

    Image ids are the source's if it has them; else the numbers that the file names consist of, if they do and
    differ; else 1, 2, 3 ... in the order of the source. Categories keep their ids; what has none gets a
    category "object". Instances keep their ids if these differ in the whole source; else they are counted.
    """

    def __init__(self, source: Source) -> None:
        """Iterates the source once."""
        images, numbers, instances = list[Any](), list[Any](), list[Any]()
        used, stuff = set[int | None](), set[int | None](getattr(source, "stuff", ()))
        for image in _images(source, []):
            images.append(image.image_id)
            numbers.append(_number(image))
            instances += [each.instance_id for each in image.instances]
            used.update(each.category_id for each in image.instances)
            stuff.update(each.category_id for each in image.instances if each.is_stuff)
        self._numbered = _all_differ(numbers)
        # the source's own; folders have stems, which are better numbers where they can be
        are_stems = not isinstance(source, CocoSource) and all(isinstance(each, str) for each in images)
        self.own_images = _all_differ(images) and not (are_stems and self._numbered)
        self._own_instances = _all_differ(instances)
        names = {key: f"class {key}" for key in used if key is not None} | dict(source.categories)
        self._no_category = max(names, default=0) + 1
        if None in used:
            names[self._no_category] = "object"
        # what to write as ``categories``, by rising id
        self.categories: list[dict[str, Any]] = [
            {"id": category_id, "name": name} | ({"isthing": 0} if category_id in stuff else {})
            for category_id, name in sorted(names.items())
        ]

    def image_id(self, record: ImageRecord, position: int) -> ImageId:
        """The id of the image that comes at ``position``, counted from 0."""
        if self.own_images:
            assert record.image_id is not None
            return record.image_id
        number = _number(record) if self._numbered else None
        return position + 1 if number is None else number

    def category_id(self, instance: Instance) -> int:
        return self._no_category if instance.category_id is None else instance.category_id

    def instance_id(self, instance: Instance, position: int) -> int:
        """The id of the instance that is written at ``position``, counted from 0."""
        own = instance.instance_id if self._own_instances else None
        return position + 1 if own is None else own


def _all_differ(ids: list[Any]) -> bool:
    return None not in ids and len(set(ids)) == len(ids)


def _number(record: ImageRecord) -> int | None:
    stem = PurePosixPath(record.file_name or record.name).stem
    return int(stem) if stem.isascii() and stem.isdigit() and len(stem) <= _LONGEST_NUMBER else None


def _write(layout: Layout, output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes what any source holds; results of COCO keep the keys, numbers and order of their records."""
    faults: list[RecordFault] = []
    with text_output(output) as file:
        if layout == "lines":
            file.writelines(text.encode() + b"\n" for text in _result_texts(source, results, faults))
        elif layout == "results":
            write_list(file, _result_texts(source, results, faults))
            file.write(b"\n")
        else:
            ids = Ids(source)
            annotations = _annotations(source, results, ids, faults)
            lists = {"images": _image_entries(source, ids), "annotations": annotations}
            write_lists(file, lists | {"categories": ids.categories})
    return Written(faults=tuple(faults))


def write_list(file: BinaryIO, texts: Iterable[str]) -> None:
    """Writes a JSON list of values that are JSON already, one a line."""
    separator = b"["
    for text in texts:
        file.write(separator + text.encode())
        separator = b",\n"
    file.write(b"[]" if separator == b"[" else b"]")


def write_lists(file: BinaryIO, lists: Mapping[str, Iterable[object]]) -> None:
    """Writes a JSON object of lists."""
    separator = b"{"
    for key, entries in lists.items():
        file.write(separator + f'"{key}":'.encode())
        write_list(file, map(compact, entries))
        separator = b",\n"
    file.write(b"}\n")


def _result_texts(source: Source, results: Mapping[int, Mask], faults: list[RecordFault]) -> Iterator[str]:
    if isinstance(source, CocoSource) and source.file.layout in ("results", "lines"):
        sound = sorted(index for image in _images(source, faults) for index in image.indexes)
        yield from source.record_texts(results, sound)
        return
    ids = Ids(source)
    for image_id, record, instance, mask in _converted(source, results, ids, faults):
        score = NO_SCORE if instance.score is None else instance.score
        text: dict[str, Any] = {"image_id": image_id, "category_id": ids.category_id(instance)}
        text |= {"segmentation": mask_values(mask), "score": score}
        text |= {} if instance.instance_id is None else {"id": instance.instance_id}
        text |= {"iscrowd": 1} if instance.is_crowd else {}
        if not ids.own_images and record.file_name is not None:
            text["file_name"] = record.file_name  # nothing else tells which image our image id means
        yield compact(text)


def _annotations(
    source: Source, results: Mapping[int, Mask], ids: Ids, faults: list[RecordFault]
) -> Iterator[dict[str, Any]]:
    converted = _converted(source, results, ids, faults)
    for position, (image_id, _, instance, mask) in enumerate(converted):
        x0, y0, x1, y1 = mask.box
        entry: dict[str, Any] = {
            "id": ids.instance_id(instance, position),
            "image_id": image_id,
            "category_id": ids.category_id(instance),
            "segmentation": mask_values(mask, as_runs=instance.is_crowd),
            "area": mask.area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": int(instance.is_crowd),
        }
        yield entry if instance.score is None else entry | {"score": instance.score}


def _converted(
    source: Source, results: Mapping[int, Mask], ids: Ids, faults: list[RecordFault]
) -> Iterator[tuple[ImageId, ImageRecord, Instance, Mask]]:
    """Image id, image, instance and the mask to write; one that cannot be decoded goes into ``faults``."""
    for position, image in enumerate(_images(source, faults)):
        image_id = ids.image_id(image, position)
        for instance in image.instances:
            mask = results.get(instance.index, instance.mask)
            try:
                if not isinstance(mask, Mask):
                    mask = Mask.from_window(mask.decode())
                yield image_id, image, instance, mask
            except InputError as error:
                label = error.record or instance.label
                faults.append(RecordFault(error.at(record=label if error.file else f"{image.name}, {label}")))


def _images(items: Iterable[ImageRecord | RecordFault], faults: list[RecordFault]) -> Iterator[ImageRecord]:
    """The images of a source; what is at fault goes into ``faults``."""
    for item in items:
        if isinstance(item, RecordFault):
            faults.append(item)
        else:
            yield item


def _image_entries(source: Source, ids: Ids) -> Iterator[dict[str, Any]]:
    items = source.unread() if isinstance(source, UnreadSource) else source
    for position, image in enumerate(_images(items, [])):
        entry: dict[str, Any] = {"id": ids.image_id(image, position)}
        if image.file_name is not None:
            entry["file_name"] = image.file_name
        # where it is not stated, its masks may tell
        if (size := image.size or _image_size(image.read()[0])) is not None:
            entry |= {"width": size[1], "height": size[0]}
        yield entry


def _image_size(record: ImageRecord) -> tuple[int, int] | None:
    """(height, width) of an image as its masks or its file say; None where nothing does."""
    for instance in record.instances:
        with suppress(InputError):  # named when the mask is decoded
            return instance.mask.size
    with suppress(InputError):  # an image without masks: nothing depends on it
        return None if record.path is None else image_sizes(record.path, record.orientation)[0]
    return None


def _open(layout: Layout, path: Path, options: OpenOptions) -> CocoSource:
    source = CocoSource(path, options, layout)
    source.check_usable()
    return source


def _format(name: str, layout: Layout) -> Format:
    opener, writer = partial(_open, layout), partial(_write, layout)
    suffixes = (".jsonl", ".json") if layout == "lines" else (".json",)
    return Format(name, False, lambda path: layout_of(path) == layout, opener, writer, suffixes=suffixes)


COCO_RESULTS = _format("coco-results", "results")
COCO_LINES = _format("coco-results-jsonl", "lines")
COCO_ANNOTATIONS = _format("coco-annotations", "annotations")
