"""A JSON file for each image, with its masks as RLE: segment-anything's and MMDetection's.

    sa_1.json     {"image": {"file_name": "sa_1.jpg", ...}, "annotations": [{"segmentation": RLE, "bbox": ...}, ...]}
    street.json   [{"segmentation": RLE, "predicted_iou": 0.97, ...}, ...]   automatic masks, as somebody saved them
    street.json   {"labels": [2], "scores": [0.9], "bboxes": [[x0, y0, x1, y1]], "masks": [RLE]}   MMDetection

The image is the one that the file names, else the one of the file's stem. Files are edited in place: of a refined mask
its RLE, box and area change, every other byte stays. A single file is read and written as a folder of one.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

from transfiner_refine.errors import InputError
from transfiner_refine.formats.coco_records import CocoImage, mask_values, record_with_mask
from transfiner_refine.formats.folders import FolderEntry, FolderSource, first_files, start_of, write_file
from transfiner_refine.formats.json_stream import Ambiguous, compact, edited, parse, parts, whole
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
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_binary_file, atomic_folder, check_output_file

_LOOKED_AT = 1 << 18  # bytes of a file in which its keys are looked for
Edits: TypeAlias = Iterator[tuple[int, int, str]]


@dataclass(frozen=True)
class Layout:
    """What sets the files of one tool apart."""

    name: str
    recognise: Callable[[bytes], bool]  # by a file's first bytes
    read: Callable[
        [Any], tuple[Mapping[str, Any], list[Any]]
    ]  # what it says of its image; its masks as COCO records
    edits: Callable[
        [str, Mapping[int, Mask], bool, OpenOptions], Edits
    ]  # for other masks; whether boxes stay
    new: Callable[[ImageRecord, tuple[int, int], Sequence[Instance]], Any]  # a new file; masks are ``Mask``
    holds_crowds: bool = True


class ImageJsonSource(FolderSource):
    """The JSON files of a folder and its subfolders, or one. Of each file, only its place is held."""

    def __init__(self, layout: Layout, path: Path, options: OpenOptions) -> None:
        one = [PurePosixPath(path.name)] if path.is_file() else None
        super().__init__(path.parent if one else path, options, one)
        files = [name for name in self.files if name.suffix.lower() == ".json"]
        self._layout, self._one, self._keep_boxes = layout, one, False
        self._tree = None if options.images is None else ImageTree(options.images)
        self.parse_entries(files, self._entry)
        if one and self.entries[0].error is not None:
            raise self.entries[0].error
        self.find_images(self._tree)

    def instances_of(
        self,
        position: int,
        size: Callable[[], tuple[int, int]],  # noqa: ARG002  asked for polygons alone, by ``CocoImage``
    ) -> Iterator[Instance | RecordFault]:
        entry = self.entries[position]
        _, records = self._read(entry.name)
        path = None if self.image_folder is None or entry.image is None else self.image_folder / entry.image
        name = entry.name.as_posix()
        image = CocoImage(
            path,
            name,
            size=entry.size,
            file=self.folder / name,
            records=tuple((index, f"mask {index}", _named(each, name)) for index, each in enumerate(records)),
            refine_crowds=self.options.refine_crowds,
            fit_masks=self.options.fit_masks,
            orientation=self.options.orientation,
        )
        found, faults = image.read()
        yield from (RecordFault(error) for _, error in faults)
        yield from (replace(each, label=f"{name} {each.label}") for each in found.instances)

    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        name = self.entries[position].name
        text = self.text(name)
        edits = self._layout.edits(text, masks, self._keep_boxes, self.options)
        self.write_text(name, edited(text, edits), draft)
        return Written()

    def write(
        self,
        output: Path,
        results: Mapping[int, Mask],
        *,
        keep_boxes: bool = False,
        overwrite: bool = False,
    ) -> Written:
        self._keep_boxes = keep_boxes
        if not self._one:
            return super().write(output, results, keep_boxes=keep_boxes, overwrite=overwrite)
        (name,), images = self._one, self.options.images
        check_output_file(output, [self.folder / name, *([images] if images else [])], overwrite=overwrite)
        text = self.text(name)
        text = edited(text, self._layout.edits(text, results, keep_boxes, self.options))
        with atomic_binary_file(output) as file:
            file.write((BOM_UTF8 if self.read(name).startswith(BOM_UTF8) else b"") + text.encode())
        return Written()

    def _read(self, name: PurePosixPath) -> tuple[Mapping[str, Any], list[Any]]:
        try:
            document = parse(self.text(name))
            if isinstance(document, Ambiguous):
                raise document.error
            return self._layout.read(document)
        except InputError as error:
            raise error.at(self.folder / name) from None

    def _entry(self, name: PurePosixPath) -> FolderEntry:
        image, records = self._read(name)
        height, width, file_name = (
            whole(image.get("height")),
            whole(image.get("width")),
            image.get("file_name"),
        )
        size = (height, width) if height and width and min(height, width) > 0 else None
        called = PureWindowsPath(file_name).name if isinstance(file_name, str) else ""
        is_image = bool(called) and (self._tree is None or self._tree.has_key(PurePosixPath(called).stem))
        stem = (name.with_name(called) if is_image else name).with_suffix("")
        usual_name = name.with_name(called).as_posix() if called else None
        return FolderEntry(name, stem, len(records), size=size, usual_name=usual_name)


def _named(record: Any, name: str) -> Any:
    """A record with the name of its image, as COCO's records need one; what is no object stays."""
    return (
        record
        if isinstance(record, Ambiguous) or not isinstance(record, dict)
        else {**record, "file_name": name}
    )


def _list_in(document: Any, *keys: str) -> list[Any]:
    """The list under the first of the keys that an object has; raises InputError where there is none."""
    found = (
        next((document[key] for key in keys if key in document), None) if isinstance(document, dict) else None
    )
    if not isinstance(found, list):
        raise InputError(f"has no list of {keys[0]}", remedy="give files of one tool, one for each image")
    return found


def _sam_records(document: Any) -> tuple[Mapping[str, Any], list[Any]]:
    records = document if isinstance(document, list) else _list_in(document, "annotations")
    image = document.get("image") if isinstance(document, dict) else {}

    def scored(record: Any) -> Any:
        has_score = not isinstance(record, dict) or "score" in record or isinstance(record, Ambiguous)
        return record if has_score else {**record, "score": record.get("predicted_iou")}

    return image if isinstance(image, dict) else {}, [scored(record) for record in records]


def _sam_edits(text: str, masks: Mapping[int, Mask], keep_boxes: bool, options: OpenOptions) -> Edits:
    start = next((start for key, _, start, _ in parts(text) if key == "annotations"), 0)
    for index, _, begin, end in parts(text, start):
        if index in masks:
            yield begin, end, record_with_mask(text[begin:end], masks[index], keep_boxes, options)


def _new_sam(image: ImageRecord, size: tuple[int, int], found: Sequence[Instance]) -> Any:
    annotations = []
    for number, each in enumerate(found, 1):
        assert isinstance(each.mask, Mask)
        x0, y0, x1, y1 = each.mask.box
        record = {
            "id": number if each.instance_id is None else each.instance_id,
            "segmentation": mask_values(each.mask),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": each.mask.area,
        }
        record |= {} if each.score is None else {"predicted_iou": each.score}
        record |= {} if each.category_id is None else {"category_id": each.category_id}
        annotations.append(record | ({"iscrowd": 1} if each.is_crowd else {}))
    entry = {"image_id": image.image_id, "width": size[1], "height": size[0], "file_name": image.file_name}
    return {
        "image": {key: value for key, value in entry.items() if value is not None},
        "annotations": annotations,
    }


def _mmdet_records(document: Any) -> tuple[Mapping[str, Any], list[Any]]:
    masks = _list_in(document, "masks")
    lists = {"category_id": "labels", "score": "scores", "bbox": "bboxes"}
    found: dict[str, list[Any]] = {
        key: _list_in(document, name) for key, name in lists.items() if name in document
    }
    if lengths := {len(each) for each in found.values()} - {len(masks)}:
        reason = f"has {len(masks)} masks, but lists of {min(lengths)} beside them"
        raise InputError(reason, remedy="check that the file is complete")
    records = []
    for index, mask in enumerate(masks):
        record = {"segmentation": mask, **{key: values[index] for key, values in found.items()}}
        box = record.get("bbox")
        if isinstance(box, list) and len(box) == 4 and all(type(each) in (int, float) for each in box):
            record["bbox"] = [*box[:2], box[2] - box[0], box[3] - box[1]]
        records.append(record)
    return {}, records


def _mmdet_edits(text: str, masks: Mapping[int, Mask], keep_boxes: bool, options: OpenOptions) -> Edits:  # noqa: ARG001  RLE alone
    for key, _, start, _ in parts(text):
        if key == "masks" or (key == "bboxes" and not keep_boxes):
            for index, _, begin, end in parts(text, start):
                if mask := masks.get(index):
                    yield (
                        begin,
                        end,
                        compact(mask_values(mask) if key == "masks" else [*map(float, mask.box)]),
                    )


def _new_mmdet(_: ImageRecord, __: tuple[int, int], found: Sequence[Instance]) -> Any:
    masks = [each.mask for each in found if isinstance(each.mask, Mask)]
    return {
        "labels": [each.category_id or 0 for each in found],
        "scores": [1.0 if each.score is None else each.score for each in found],
        "bboxes": [[*map(float, mask.box)] for mask in masks],
        "masks": [mask_values(mask) for mask in masks],
    }


def _write(layout: Layout, output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a file an image."""
    conversion, unlabelled = Conversion(source, results, ending=".json"), 0
    with atomic_folder(output) as draft:
        for stem, size, image in conversion:
            found = []
            for each in image.instances:
                if each.is_crowd and not layout.holds_crowds:
                    reason, remedy = "it is a crowd (see --refine-crowds)", "write another format"
                    conversion.leave_out(image, each, reason, remedy)
                    continue
                unlabelled += each.category_id is None
                found.append(replace(each, mask=Mask.from_window(each.mask.decode().hard())))
            write_file(draft / f"{stem}.json", compact(layout.new(image, size, found)).encode() + b"\n")
    zeros = f"Masks without a class that have label 0 now: {unlabelled}."
    return replace(conversion.written(), notes=(zeros,) if unlabelled and layout is _MMDET else ())


def _is_sam(start: bytes) -> bool:
    if b'"segmentation"' not in start:
        return False
    if not start.lstrip(BOM_UTF8 + b" \t\r\n").startswith(b"["):
        return b'"image"' in start
    names_images = any(key in start for key in (b'"image_id"', b'"file_name"'))  # as COCO's results
    return not names_images and any(key in start for key in (b'"predicted_iou"', b'"area"'))


def _is_mmdet(start: bytes) -> bool:
    return all(key in start for key in (b'"labels"', b'"scores"')) and b'"segmentation"' not in start


_SAM = Layout("sam", _is_sam, _sam_records, _sam_edits, _new_sam)
_MMDET = Layout("mmdetection", _is_mmdet, _mmdet_records, _mmdet_edits, _new_mmdet, holds_crowds=False)


def _recognise(layout: Layout, path: Path) -> bool:
    files = first_files(path, ".json") if path.is_dir() else [path]
    found = [layout.recognise(start_of(file, _LOOKED_AT)) for file in files]
    return any(found) and 2 * sum(found) >= len(found)


def _format(layout: Layout, is_folder: bool) -> Format:
    opener, writer = partial(ImageJsonSource, layout), partial(_write, layout)
    return Format(layout.name, is_folder, partial(_recognise, layout), opener, writer)


SAM, MMDETECTION = (_format(layout, True) for layout in (_SAM, _MMDET))
SINGLE_FILES = tuple(_format(layout, False) for layout in (_SAM, _MMDET))
