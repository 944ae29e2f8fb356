"""COCO JSON: a list of results, or an annotation file; told apart by what is in it.

Records are never rebuilt. What was refined gets a new ``segmentation`` (and ``bbox`` and ``area`` where it
had them) in the place of the old one; all other records, keys and numbers are those that were read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from transfiner_refine.formats.images import ImageFolder, upright_size
from transfiner_refine.formats.output import atomic_file, check_output_file
from transfiner_refine.formats.rle import RleMask, mask_from_segmentation
from transfiner_refine.formats.source import RecordFault, Written
from transfiner_refine.types import ImageRecord, InputError, Instance

__all__ = ["CocoSource"]

ImageId = int | str


@dataclass(frozen=True)
class _ImageGroup:
    """The records of one image.

    Attributes:
        name: file name or id, for messages.
        found: the photo, or why there is none.
        size: (height, width) that the file states, None where it states none.
        records: indexes of the records, in the order of the file.
    """

    name: str
    found: Path | InputError
    size: tuple[int, int] | None
    records: tuple[int, ...]


class CocoSource:
    """A COCO file and the photos it speaks of."""

    def __init__(self, path: Path, images: Path, *, image_info: Path | None = None) -> None:
        """Reads the file whole and finds its photos, but decodes no mask yet.

        Args:
            path: results list or annotation file.
            images: the folder of the photos.
            image_info: for a results list: an annotation file that says which image id is which photo.

        Raises:
            InputError: invalid JSON, neither of the two kinds, no records, or none of the photos is there.
        """
        self._path, self._image_info = path, image_info
        self._document: Any = _load(path)
        info: Any = None
        if isinstance(self._document, list):
            self._records: list[Any] = self._document
            self._noun = "record"
            if image_info is not None:
                info = _annotation_file(_load(image_info), image_info)
        else:
            info = _annotation_file(self._document, path)
            self._records = info.get("annotations")
            self._noun = "annotation"
            if not isinstance(self._records, list):
                raise InputError(
                    "has no list of annotations", file=path, remedy="give results or annotations"
                )
            if image_info is not None:
                raise InputError("names its images itself", file=path, remedy="leave --image-info out")
        if not self._records:
            raise InputError(
                f"holds no {self._noun}s", file=path, remedy="give a file with at least one mask"
            )
        self._categories = _categories(info)
        self._orphans, self._groups = self._group(ImageFolder(images), info)

    @property
    def num_images(self) -> int:
        return len(self._groups)

    @property
    def num_instances(self) -> int:
        return len(self._records)

    @property
    def categories(self) -> Mapping[int, str]:
        return self._categories

    def __iter__(self) -> Iterator[ImageRecord | RecordFault]:
        yield from self._orphans
        for group in self._groups:
            if isinstance(group.found, InputError):
                yield RecordFault(group.found, len(group.records), whole_image=True)
                continue
            instances = []
            for index in group.records:
                try:
                    instances.append(self._instance(index, group))
                except InputError as error:
                    yield RecordFault(self._blame(error, index))
            yield ImageRecord(group.found, group.name, tuple(instances), group.size)

    def check_output(self, output: Path, *, overwrite: bool) -> None:
        inputs = [self._path] if self._image_info is None else [self._path, self._image_info]
        check_output_file(output, inputs, overwrite=overwrite)

    def write(
        self,
        output: Path,
        results: Mapping[int, RleMask],
        *,
        keep_boxes: bool = False,
        overwrite: bool = False,
    ) -> Written:
        self.check_output(output, overwrite=overwrite)
        with atomic_file(output) as file:
            if self._document is self._records:
                self._write_records(file, results, keep_boxes)
            else:
                for position, (key, value) in enumerate(self._document.items()):
                    file.write(f"{',' if position else '{'}{json.dumps(key)}:")
                    if key == "annotations":
                        self._write_records(file, results, keep_boxes)
                    else:
                        file.write(_dump(value))
                file.write("}")
            file.write("\n")
        return Written()

    def _write_records(self, file: TextIO, results: Mapping[int, RleMask], keep_boxes: bool) -> None:
        for index, record in enumerate(self._records):
            mask = results.get(index)
            file.write(",\n" if index else "[")
            file.write(_dump(record if mask is None else _refined(record, mask, keep_boxes)))
        file.write("]")

    def _group(self, folder: ImageFolder, info: Any) -> tuple[list[RecordFault], list[_ImageGroup]]:
        """The records of no image at all; and the others by image, in the order in which they come."""
        orphans: list[RecordFault] = []
        by_image: dict[ImageId, list[int]] = {}
        for index, record in enumerate(self._records):
            image_id = record.get("image_id") if isinstance(record, dict) else None
            if type(image_id) is int or type(image_id) is str:
                by_image.setdefault(image_id, []).append(index)
            else:
                reason = f"image_id is {image_id!r}" if isinstance(record, dict) else "is no JSON object"
                error = InputError(reason, remedy="write the id of its image into the record")
                orphans.append(RecordFault(self._blame(error, index)))
        entries = _image_entries(info)
        groups = []
        for image_id, indexes in by_image.items():
            entry = None if entries is None else entries.get(image_id, {})
            name, found = self._find(folder, image_id, entry)
            groups.append(_ImageGroup(name, found, _stated_size(entry), tuple(indexes)))
        errors = [group.found for group in groups if isinstance(group.found, InputError)]
        if errors and len(errors) == len(groups):
            raise (
                errors[0]
                if len(errors) == 1
                else InputError(
                    f"none of the {len(errors)} images was found; {errors[0].reason}",
                    file=errors[0].file,
                    record=errors[0].record,
                    remedy=errors[0].remedy,
                )
            )
        return orphans, groups

    def _find(
        self, folder: ImageFolder, image_id: ImageId, entry: dict[str, Any] | None
    ) -> tuple[str, Path | InputError]:
        """An image's name for messages and its photo, or why there is none."""
        try:
            if entry is None:
                return f"image id {image_id}", folder.with_id(image_id)
            file_name = entry.get("file_name")
            if isinstance(file_name, str) and file_name:
                return file_name, folder.named(file_name)
            listed = "has no file_name" if entry else "is not among the images"
            raise InputError(
                f"image id {image_id} {listed}",
                file=self._image_info or self._path,
                remedy="check that the two files belong together"
                if self._image_info
                else "add it to the images",
            )
        except InputError as error:
            return f"image id {image_id}", error

    def _instance(self, index: int, group: _ImageGroup) -> Instance:
        record = self._records[index]
        score = record.get("score")
        if score is not None and (type(score) not in (int, float) or not math.isfinite(score)):
            raise InputError(f"score is {score!r}", remedy="write a finite number")
        category_id = record.get("category_id")
        found = group.found
        assert isinstance(found, Path)
        return Instance(
            index=index,
            mask=mask_from_segmentation(
                record.get("segmentation"), lambda: group.size or upright_size(found)
            ),
            label=self._label(index),
            category_id=category_id if type(category_id) is int else None,
            score=None if score is None else float(score),
            is_crowd=bool(record.get("iscrowd")),
        )

    def _label(self, index: int) -> str:
        record = self._records[index]
        if self._noun == "annotation" and isinstance(record, dict) and "id" in record:
            return f"annotation id {record['id']}"
        return f"{self._noun} {index}"

    def _blame(self, error: InputError, index: int) -> InputError:
        return InputError(
            error.reason,
            file=error.file or self._path,
            record=error.record or self._label(index),
            remedy=error.remedy,
        )


def _refined(record: dict[str, Any], mask: RleMask, keep_boxes: bool) -> dict[str, Any]:
    """The record with another mask: the same keys in the same order."""
    changed = {**record, "segmentation": {"size": list(mask.size), "counts": mask.counts}}
    if not keep_boxes:
        if "bbox" in record:
            x0, y0, x1, y1 = mask.box
            changed["bbox"] = [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]
        if "area" in record:
            changed["area"] = float(mask.area) if isinstance(record["area"], float) else mask.area
    return changed


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="check the path") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"is not valid JSON: {error.msg}",
            file=path,
            record=f"line {error.lineno} column {error.colno}",
            remedy="check that the file is complete",
        ) from error
    except RecursionError:
        raise InputError("is not valid JSON: nested too deeply", file=path, remedy="write it again") from None
    except ValueError as error:  # not UTF-8, or a number of thousands of digits
        raise InputError(
            f"is not valid JSON: {error}", file=path, remedy="write it again as UTF-8"
        ) from error


def _annotation_file(document: Any, path: Path) -> dict[str, Any]:
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise InputError(
            "is no COCO file: neither a list of results nor an object with images and annotations",
            file=path,
            remedy="give COCO results or annotations",
        )
    return document


def _image_entries(info: dict[str, Any] | None) -> dict[ImageId, dict[str, Any]] | None:
    """What an annotation file says of its images, by id; None without such a file."""
    if info is None:
        return None
    entries = [entry for entry in info["images"] if isinstance(entry, dict)]
    return {entry["id"]: entry for entry in entries if isinstance(entry.get("id"), (int, str))}


def _categories(info: dict[str, Any] | None) -> dict[int, str]:
    listed = info.get("categories") if info is not None else None
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return {
        entry["id"]: entry["name"]
        for entry in entries
        if isinstance(entry.get("id"), int) and isinstance(entry.get("name"), str)
    }


def _stated_size(entry: dict[str, Any] | None) -> tuple[int, int] | None:
    if entry is None:
        return None
    height, width = entry.get("height"), entry.get("width")
    return (
        (height, width) if type(height) is int and type(width) is int and height > 0 and width > 0 else None
    )
