"""COCO results (a list, or one a line) and COCO annotations.

Records are never rebuilt. What was refined gets a new ``segmentation`` (and ``bbox`` and ``area`` where it
had them) in the place of the old one; all other bytes of the file are written as they were read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from transfiner_refine.errors import InputError
from transfiner_refine.formats.coco.image import CocoImage, blamed, own_label
from transfiner_refine.formats.coco.index import Layout, index_records
from transfiner_refine.formats.coco.photos import ImageId, Photo, check_any_found, find_photo, read_listing
from transfiner_refine.formats.coco.records import with_mask
from transfiner_refine.formats.json_scan import short
from transfiner_refine.formats.records import ImageRecord, OpenOptions, RecordFault, UnreadSource, Written
from transfiner_refine.formats.text_file import TextFile, text_output
from transfiner_refine.images import ImageFolder
from transfiner_refine.masks import Mask
from transfiner_refine.output import check_output_file

__all__ = ["CocoSource"]


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
        self.layout: Layout = layout
        self._path, self._image_info = path, options.image_info
        self._text = TextFile(path)
        self._index, self._listing = index_records(self._text, layout)
        self._noun = "annotation" if layout == "annotations" else "record"
        if not len(self._index.values):
            raise InputError(
                f"holds no {self._noun}s", file=path, remedy="give a file with at least one mask"
            )
        if options.image_info is not None:
            if self._listing is not None:
                raise InputError("names its images itself", file=path, remedy="leave --image-info out")
            self._listing = read_listing(options.image_info)
        self._folder = None if options.images is None else ImageFolder(options.images)
        check_any_found(self._index.image_ids, self._photo)

    @property
    def num_images(self) -> int:
        return len(self._index.image_ids)

    @property
    def num_instances(self) -> int:
        return len(self._index.values)

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
        for index in self._index.of_image(None):
            yield RecordFault(self._no_image(index))
        for image_id in self._images_in_order():
            indexes = self._index.of_image(image_id)
            try:
                # an image without records needs no photo, for nothing is to be done on it
                photo = self._photo(image_id) if indexes else self._photo_or_name(image_id)
            except InputError as error:
                yield RecordFault(error, len(indexes), whole_image=True)
                continue
            records = tuple((index, self._label(index), self._text_of(index)) for index in indexes)
            yield CocoImage(
                photo.path, photo.name, (), photo.size, image_id, photo.file_name,
                self._path, self.layout, records, self.stuff,
            )  # fmt: skip

    def check_output(self, output: Path, *, overwrite: bool) -> None:
        inputs = [self._path] if self._image_info is None else [self._path, self._image_info]
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
        self._text.check_unchanged()
        values = self._index.values
        with text_output(output) as file:
            at = 0
            for index in range(len(values)):
                if (mask := results.get(index)) is not None:
                    start, end = values.place(index)
                    self._copy(file, at, start)
                    file.write(self._with_mask(index, mask, keep_boxes).encode())
                    at = end
            self._copy(file, at, self._text.size)
            self._text.check_unchanged()
        return Written()

    def record_texts(self, results: Mapping[int, Mask], indexes: Iterable[int]) -> Iterator[str]:
        """Sound records as they are to be written, each on one line.

        Raises:
            InputError: the file cannot be read any more.
        """
        for index in indexes:
            mask = results.get(index)
            text = self._index.values.text(index) if mask is None else self._with_mask(index, mask, False)
            yield text.replace("\n", " ").replace("\r", " ")  # in JSON these stand between values only

    def _with_mask(self, index: int, mask: Mask, keep_boxes: bool) -> str:
        try:
            return with_mask(self._index.values.text(index), mask, keep_boxes=keep_boxes)
        except (RecursionError, ValueError):  # it was sound when it was read as an instance
            raise self._text.changed() from None

    def _copy(self, file: BinaryIO, start: int, end: int) -> None:
        for piece in self._text.pieces(start, end):
            file.write(piece)

    def _images_in_order(self) -> Iterator[ImageId]:
        """An annotation file's own images, with those that have no annotations; then what else occurs."""
        listed = self._listing.images if self._listing is not None and self.layout == "annotations" else ()
        yield from listed
        yield from (image_id for image_id in self._index.image_ids if image_id not in listed)

    def _photo(self, image_id: ImageId) -> Photo:
        return find_photo(image_id, self._listing, self._index.own_names.get(image_id), self._folder)

    def _no_image(self, index: int) -> InputError:
        """Why a record belongs to no image."""
        record = None
        try:
            record = self._index.values.value(index)
            reason = "is no JSON object"
            if isinstance(record, dict):
                reason = f"image_id is {short(record.get('image_id'))}"
            error = InputError(reason, remedy="write the id of its image into the record")
        except InputError as invalid:
            error = invalid
        return blamed(error, self._path, own_label(self._label(index), record, self.layout))

    def _text_of(self, index: int) -> str | InputError:
        try:
            return self._index.values.text(index)
        except InputError as error:
            return error

    def _photo_or_name(self, image_id: ImageId) -> Photo:
        try:
            return self._photo(image_id)
        except InputError:
            return find_photo(image_id, self._listing, None, None)

    def _label(self, index: int) -> str:
        """How a person finds a record that does not say so itself."""
        if self.layout == "lines":
            return f"line {self._index.line_numbers[index]}"
        return f"{self._noun} {index}"
