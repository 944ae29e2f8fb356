"""What any source holds, written as COCO results (a list, or one a line) or COCO annotations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from transfiner_refine.errors import InputError
from transfiner_refine.formats.coco.ids import Ids
from transfiner_refine.formats.coco.photos import ImageId
from transfiner_refine.formats.coco.records import compact, mask_values
from transfiner_refine.formats.coco.source import CocoSource
from transfiner_refine.formats.records import ImageRecord, Instance, RecordFault, Source, Written
from transfiner_refine.formats.text_file import text_output
from transfiner_refine.images import upright_size
from transfiner_refine.masks import Mask

__all__ = ["write_annotations", "write_lines", "write_list", "write_results"]

NO_SCORE = 1.0  # what results state for an instance whose source has no scores; pycocotools needs one


def write_results(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a COCO results list; ``.gz`` at the end of the name packs it.

    Results of COCO keep their records with all keys, numbers and their order.

    Raises:
        OutputError: the disk refused.
    """
    faults: list[RecordFault] = []
    with text_output(output) as file:
        write_list(file, _result_texts(source, results, faults))
        file.write(b"\n")
    return Written(faults=tuple(faults))


def write_lines(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes the same records as ``write_results``, one a line and nothing else.

    Raises:
        OutputError: the disk refused.
    """
    faults: list[RecordFault] = []
    with text_output(output) as file:
        for text in _result_texts(source, results, faults):
            file.write(text.encode() + b"\n")
    return Written(faults=tuple(faults))


def write_annotations(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a COCO annotation file: images, annotations, categories.

    Raises:
        OutputError: the disk refused.
    """
    ids = Ids(source)
    faults: list[RecordFault] = []
    with text_output(output) as file:
        file.write(b'{"images":')
        write_list(file, map(compact, _image_entries(source, ids)))
        file.write(b',\n"annotations":')
        write_list(file, map(compact, _annotations(source, results, ids, faults)))
        file.write(b',\n"categories":')
        write_list(file, map(compact, ids.categories))
        file.write(b"}\n")
    return Written(faults=tuple(faults))


def _masks_of(
    record: ImageRecord, results: Mapping[int, Mask], faults: list[RecordFault]
) -> Iterator[tuple[Instance, Mask]]:
    """The instances of an image with the masks to write; one that cannot be decoded goes into ``faults``."""
    for instance in record.instances:
        mask = results.get(instance.index)
        try:
            if mask is None and isinstance(instance.mask, Mask):
                mask = instance.mask
            yield instance, Mask.from_window(instance.mask.decode()) if mask is None else mask
        except InputError as error:
            label = error.record or instance.label
            where = label if error.file else f"{record.name}, {label}"
            named = InputError(error.reason, file=error.file, record=where, remedy=error.remedy)
            faults.append(RecordFault(named))


def _image_size(record: ImageRecord) -> tuple[int, int] | None:
    """(height, width) of an image as the source, its masks or the photo says; None where nothing does."""
    if record.size is not None:
        return record.size
    for instance in record.instances:
        try:
            return instance.mask.size
        except InputError:  # named when the mask is decoded
            continue
    try:
        return None if record.path is None else upright_size(record.path)
    except InputError:  # an image without masks: nothing depends on it
        return None


def _result_texts(source: Source, results: Mapping[int, Mask], faults: list[RecordFault]) -> Iterator[str]:
    if isinstance(source, CocoSource) and source.layout != "annotations":
        sound = []
        for item in source:
            if isinstance(item, RecordFault):
                faults.append(item)
            else:
                sound += [instance.index for instance in item.instances]
        yield from source.record_texts(results, sorted(sound))
        return
    ids = Ids(source)
    for image_id, record, instance, mask in _converted(source, results, ids, faults):
        score = NO_SCORE if instance.score is None else instance.score
        text: dict[str, Any] = {"image_id": image_id, "category_id": ids.category_id(instance)}
        text |= {"segmentation": mask_values(mask), "score": score}
        if instance.instance_id is not None:
            text["id"] = instance.instance_id
        if instance.is_crowd:
            text["iscrowd"] = 1
        if not ids.own_images and record.file_name is not None:
            text["file_name"] = record.file_name  # nothing else tells which photo our image id means
        yield compact(text)


def _annotations(
    source: Source, results: Mapping[int, Mask], ids: Ids, faults: list[RecordFault]
) -> Iterator[dict[str, Any]]:
    converted = _converted(source, results, ids, faults)
    for position, (image_id, _, instance, mask) in enumerate(converted):
        x0, y0, x1, y1 = mask.box
        # by COCO's convention crowds have their runs as a list
        crowd = {"size": list(mask.size), "counts": mask.runs.tolist()} if instance.is_crowd else None
        entry: dict[str, Any] = {
            "id": ids.instance_id(instance, position),
            "image_id": image_id,
            "category_id": ids.category_id(instance),
            "segmentation": crowd or mask_values(mask),
            "area": mask.area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": int(instance.is_crowd),
        }
        yield entry if instance.score is None else entry | {"score": instance.score}


def _converted(
    source: Source, results: Mapping[int, Mask], ids: Ids, faults: list[RecordFault]
) -> Iterator[tuple[ImageId, ImageRecord, Instance, Mask]]:
    position = 0
    for item in source:
        if isinstance(item, RecordFault):
            faults.append(item)
            continue
        image_id = ids.image_id(item, position)
        position += 1
        for instance, mask in _masks_of(item, results, faults):
            yield image_id, item, instance, mask


def _image_entries(source: Source, ids: Ids) -> Iterator[dict[str, Any]]:
    position = 0
    for item in source:
        if isinstance(item, RecordFault):
            continue
        entry: dict[str, Any] = {"id": ids.image_id(item, position)}
        position += 1
        if item.file_name is not None:
            entry["file_name"] = item.file_name
        if (size := _image_size(item)) is not None:
            entry |= {"width": size[1], "height": size[0]}
        yield entry


def write_list(file: BinaryIO, texts: Iterable[str]) -> None:
    """Writes a JSON list of values that are JSON already, one a line."""
    separator = b"["
    for text in texts:
        file.write(separator + text.encode())
        separator = b",\n"
    file.write(b"[]" if separator == b"[" else b"]")
