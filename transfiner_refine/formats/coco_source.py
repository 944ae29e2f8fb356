"""COCO files as a source of masks to refine, and its records with new masks in them.

Records are never rebuilt. What was refined gets a new ``segmentation`` (and ``bbox`` and ``area`` where it
had them) in the place of the old one; all other bytes of the file are written as they were read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from transfiner_refine.errors import InputError
from transfiner_refine.formats.coco import (
    CocoFile,
    ImageKey,
    Layout,
    RawRecord,
    check_any_found,
    find_image,
    read_listing,
    read_records,
)
from transfiner_refine.formats.json_stream import TextFile, compact, edited, parts, text_output
from transfiner_refine.formats.records import (
    ImageRecord,
    Instance,
    OpenOptions,
    RecordFault,
    UnreadSource,
    Written,
)
from transfiner_refine.images import ImageFolder, upright_size
from transfiner_refine.masks import Mask
from transfiner_refine.output import check_output_file

_SIZE = re.compile(r'"size"\s*:\s*\[\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\]')


@dataclass(frozen=True)
class CocoImage(ImageRecord):
    """An image whose instances are not parsed yet; that is done where there is time for it, in another process.

    Attributes:
        file: the COCO file.
        layout: its kind.
        records: the instances' records.
        stuff: ids of categories that are no things.
    """

    file: Path = Path()
    layout: Layout = "results"
    records: tuple[RawRecord, ...] = ()
    stuff: Collection[int] = ()

    @property
    def indexes(self) -> tuple[int, ...]:
        return tuple(index for index, _, _ in self.records)

    def without(self, done: Collection[int]) -> CocoImage:
        return replace(self, records=tuple(each for each in self.records if each[0] not in done))

    @property
    def stated_pixels(self) -> int:
        if self.size is not None or not self.records:
            return super().stated_pixels
        text = self.records[0][2]
        found = _SIZE.search(text) if isinstance(text, str) else None
        return int(found[1]) * int(found[2]) if found else 0

    def read(self) -> tuple[ImageRecord, list[tuple[int, InputError]]]:
        # a photo without a stated size is opened for it, once
        read = read_records(self.records, self.file, self.layout, cache(self._image_size), self.stuff)
        faults, instances = list[tuple[int, InputError]](), list[Instance]()
        for (index, _, _), (_, found) in zip(self.records, read, strict=True):
            if isinstance(found, InputError):
                faults.append((index, found))
            else:
                instances.append(found)
        return ImageRecord(
            self.path, self.name, tuple(instances), self.size, self.image_id, self.file_name
        ), faults

    def _image_size(self) -> tuple[int, int]:
        if self.size is not None:
            return self.size
        if self.path is not None:
            return upright_size(self.path)
        raise InputError(
            "its polygons do not say how large the image is",
            remedy="give the photos with --images, or sizes with --image-info",
        )


class CocoSource(UnreadSource):
    """A COCO file and the photos it speaks of. Of the file, offsets are held, not records."""

    def __init__(self, path: Path, options: OpenOptions, layout: Layout) -> None:
        """Walks over the file once and looks for its photos, but decodes no mask yet.

        Args:
            path: the file, plain or gzip.
            options: for results, ``image_info`` may say which image id is which photo.
            layout: a list of results, one result a line, or an annotation file.

        Raises:
            InputError: invalid JSON, another layout, no records, or none of the photos is there.
        """
        self.file = CocoFile(path, layout)
        self._image_info, self._listing = options.image_info, self.file.listing
        if not len(self.file.records):
            noun = "annotations" if layout == "annotations" else "records"
            raise InputError(f"holds no {noun}", file=path, remedy="give a file with at least one mask")
        if options.image_info is not None:
            if self._listing is not None:
                raise InputError("names its images itself", file=path, remedy="leave --image-info out")
            self._listing = read_listing(options.image_info)
            self.file.match(self._listing)
        self._folder = None if options.images is None else ImageFolder(options.images)
        check_any_found(self.file.images, self._image)

    @property
    def num_images(self) -> int:
        return len(self.file.images)

    @property
    def num_instances(self) -> int:
        return len(self.file.records)

    @property
    def categories(self) -> Mapping[int, str]:
        return {} if self._listing is None else self._listing.categories

    @property
    def stuff(self) -> Collection[int]:
        """Ids of categories that are no things; empty where the input does not say."""
        return () if self._listing is None else self._listing.stuff

    def __iter__(self) -> Iterator[ImageRecord | RecordFault]:
        for item in self.unread():
            if isinstance(item, RecordFault):
                yield item
                continue
            record, faults = item.read()
            yield from (RecordFault(error) for _, error in faults)
            yield record

    def unread(self) -> Iterator[ImageRecord | RecordFault]:
        yield from map(RecordFault, self.file.homeless())
        for key in self._images_in_order():
            raw = self.file.raw(key)
            try:
                # an image without records needs no photo, for nothing is to be done on it
                image = self._image(key) if raw else self._image_or_name(key)
            except InputError as error:
                yield RecordFault(error, len(raw), whole_image=True)
                continue
            yield CocoImage(
                image.path, image.name, (), image.size, image.image_id, image.file_name,
                self.file.path, self.file.layout, raw, self.stuff,
            )  # fmt: skip
        self.file.text.check_unchanged()

    def check_output(self, output: Path, *, overwrite: bool) -> None:
        inputs = [self.file.path] if self._image_info is None else [self.file.path, self._image_info]
        check_output_file(output, inputs, overwrite=overwrite)

    def write(
        self,
        output: Path,
        results: Mapping[int, Mask],
        *,
        keep_boxes: bool = False,
        overwrite: bool = False,
    ) -> Written:
        self.check_output(output, overwrite=overwrite)
        text = self.file.text
        text.check_unchanged()
        with text_output(output) as file:
            at = 0
            for index in range(self.num_instances):
                if (mask := results.get(index)) is not None:
                    start, end = self.file.records.place(index)
                    _copy(text, at, start, file)
                    file.write(self._with_mask(index, mask, keep_boxes).encode())
                    at = end
            _copy(text, at, text.size, file)
            text.check_unchanged()
        return Written()

    def record_texts(self, results: Mapping[int, Mask], indexes: Iterable[int]) -> Iterator[str]:
        """Sound records as they are to be written, each on one line.

        Raises:
            InputError: the file cannot be read any more.
        """
        for index in indexes:
            mask = results.get(index)
            text = self.file.records.text(index) if mask is None else self._with_mask(index, mask, False)
            yield text.replace("\n", " ").replace("\r", " ")  # in JSON these stand between values only

    def _with_mask(self, index: int, mask: Mask, keep_boxes: bool) -> str:
        try:
            return _with_mask(self.file.records.text(index), mask, keep_boxes=keep_boxes)
        except (RecursionError, ValueError):  # it was sound when it was read as an instance
            raise self.file.text.changed() from None

    def _images_in_order(self) -> Iterator[ImageKey]:
        """An annotation file's own images, with those that have no annotations; then what else occurs."""
        listed = {} if self.file.listing is None else self.file.listing.images
        yield from listed
        yield from (key for key in self.file.images if key not in listed)

    def _image(self, key: ImageKey) -> ImageRecord:
        return find_image(key, self._listing, self.file.own_names.get(key), self._folder)

    def _image_or_name(self, key: ImageKey) -> ImageRecord:
        try:
            return self._image(key)
        except InputError:
            return find_image(key, self._listing, None, None)


def mask_values(mask: Mask) -> dict[str, Any]:
    """A mask as the ``segmentation`` that COCO's tools take."""
    return {"size": list(mask.size), "counts": mask.counts}


def _with_mask(text: str, mask: Mask, *, keep_boxes: bool) -> str:
    """The text of a sound record with another mask; all that does not follow from the mask stays as it is."""
    x0, y0, x1, y1 = mask.box
    edits = []
    for key, value, start, end in parts(text):
        if key == "segmentation":
            edits.append((start, end, compact(mask_values(mask))))
        elif key == "bbox" and not keep_boxes:
            edits.append((start, end, compact([float(x0), float(y0), float(x1 - x0), float(y1 - y0)])))
        elif key == "area" and not keep_boxes:
            edits.append((start, end, compact(float(mask.area) if isinstance(value, float) else mask.area)))
    return edited(text, edits)


def _copy(text: TextFile, start: int, end: int, file: BinaryIO) -> None:
    for piece in text.pieces(start, end):
        file.write(piece)
