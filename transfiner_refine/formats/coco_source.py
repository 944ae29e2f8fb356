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
    CocoInstance,
    ImageKey,
    Layout,
    RawRecord,
    find_image,
    layout_of,
    read_records,
)
from transfiner_refine.formats.json_stream import TextFile, compact, edited, parts, text_output
from transfiner_refine.formats.records import ImageRecord, OpenOptions, RecordFault, UnreadSource, Written
from transfiner_refine.images import ImageFolder, upright_size
from transfiner_refine.masks import Mask
from transfiner_refine.output import check_output_file

_SIZE = re.compile(r'"size"\s*:\s*\[\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\]')


@dataclass(frozen=True)
class CocoImage(ImageRecord):
    """An image whose records are not parsed yet; that is done where there is time for it, in another process.

    Attributes:
        file: the COCO file.
        records: the instances' records.
        stuff: ids of categories that are no things.
    """

    file: Path = Path()
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
        # an image without a stated size is opened for it, once
        read = read_records(self.records, self.file, cache(self._image_size), self.stuff)
        instances = tuple(each for each in read if not isinstance(each, InputError))
        record = ImageRecord(self.path, self.name, instances, self.size, self.image_id, self.file_name)
        both = zip(self.indexes, read, strict=True)
        return record, [(index, each) for index, each in both if isinstance(each, InputError)]

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
    """A COCO file and the images it speaks of. Of the file, offsets are held, not records.

    Attributes:
        file: the file.
        listing: what names the images and categories: the file itself or that of ``--image-info``.
    """

    def __init__(
        self,
        path: Path,
        options: OpenOptions | None = None,
        layout: Layout | None = None,
        listing: CocoFile | None = None,
    ) -> None:
        """Walks over the file once; no mask is decoded and no image looked for yet.

        Args:
            path: the file; without a ``layout``, its kind is told by the content.
            options: what goes with it.
            layout: its kind.
            listing: an annotation file in place of what names the images otherwise.

        Raises:
            InputError: invalid JSON, another layout, or an annotation file with ``image_info`` beside it.
        """
        layout, options = layout or layout_of(path) or "annotations", options or OpenOptions()
        self.file, self._inputs = CocoFile(path, layout), [path]
        self.listing = listing or (self.file if layout == "annotations" else None)
        if listing is not None:
            self.file.match(listing)
        if options.image_info is not None:
            if self.listing is not None:
                raise InputError("names its images itself", file=path, remedy="leave --image-info out")
            self._inputs.append(options.image_info)
            self.listing = CocoFile(options.image_info, "info")
            self.file.match(self.listing)
        self._folder = None if options.images is None else ImageFolder(options.images)

    @property
    def num_images(self) -> int:
        return len(self.file.images)

    @property
    def num_instances(self) -> int:
        return len(self.file.records)

    @property
    def categories(self) -> Mapping[int, str]:
        return {} if self.listing is None else self.listing.categories

    @property
    def stuff(self) -> Collection[int]:
        """Ids of categories that are no things; empty where the input does not say."""
        return () if self.listing is None else self.listing.stuff

    def __iter__(self) -> Iterator[ImageRecord | RecordFault]:
        for item in self.unread():
            if isinstance(item, ImageRecord):
                item, faults = item.read()
                yield from (RecordFault(error) for _, error in faults)
            yield item

    def unread(self) -> Iterator[ImageRecord | RecordFault]:
        homeless = CocoImage(None, "", file=self.file.path, records=self.file.raw(None), size=(1, 1))
        yield from (RecordFault(error) for _, error in homeless.read()[1])
        own = self.listing is self.file
        listed = self.file.listed if own else {}
        # an annotation file's own images, with those that have no annotations; then what else occurs
        for key in (*listed, *(key for key in self.file.images if key not in listed)):
            raw = self.file.raw(key)
            try:
                image = self.find(key, is_needed=bool(raw))
            except InputError as error:
                where = self.file.label(raw[0][0]) if raw else None
                error = error if error.file else error.at(self.file.path, where)
                yield RecordFault(error, len(raw), whole_image=True)
                continue
            yield CocoImage(
                image.path, image.name, (), image.size, image.image_id, image.file_name,
                self.file.path, raw, self.stuff,
            )  # fmt: skip
        self.file.text.check_unchanged()

    def find(self, key: ImageKey, *, is_needed: bool = True) -> ImageRecord:
        """An image without its instances.

        Raises:
            InputError: it is not listed; or its file is not there, and it is needed, for there is something to refine.
        """
        try:
            return find_image(key, self.listing, self.file.own_names.get(key), self._folder)
        except InputError:
            if is_needed:
                raise
            return find_image(key, self.listing, None, None)

    def check_output(self, output: Path, *, overwrite: bool) -> None:
        check_output_file(output, self._inputs, overwrite=overwrite)

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
        """The text of a sound record with another mask; what does not follow from the mask stays as it is."""
        (x0, y0, x1, y1), text = mask.box, self.file.records.text(index)
        edits = []
        try:
            for key, value, start, end in parts(text):
                if key == "segmentation":
                    edits.append((start, end, compact(mask_values(mask))))
                elif key == "bbox" and not keep_boxes:
                    edits.append(
                        (start, end, compact([float(x0), float(y0), float(x1 - x0), float(y1 - y0)]))
                    )
                elif key == "area" and not keep_boxes:
                    area = float(mask.area) if isinstance(value, float) else mask.area
                    edits.append((start, end, compact(area)))
        except (RecursionError, ValueError):  # it was sound when it was read as an instance
            raise self.file.text.changed() from None
        return edited(text, edits)


def sound_images(
    source: CocoSource, faults: list[InputError], *, only_listed: bool = False
) -> Iterator[tuple[ImageRecord, list[CocoInstance]]]:
    """The images of a file that is needed as a whole, with instances whose masks have the size stated for the image.

    Args:
        source: the file.
        faults: takes what is wrong with all else; ``refuse`` says it.
        only_listed: pass over records of images that are not known, or not there.
    """
    file = source.file.path
    for item in source:
        if isinstance(item, RecordFault):
            faults += [] if item.whole_image and only_listed else [item.error]
        elif item.size is None:
            faults.append(InputError("no height or width", file=file, record=item.name))
        else:
            found = [each for each in item.instances if isinstance(each, CocoInstance)]
            for each in found:
                if each.mask.size != item.size:
                    reason = f"mask of size {list(each.mask.size)} in an image of {list(item.size)}"
                    faults.append(InputError(f"{reason} (height, width)", file=file, record=each.label))
            yield item, [each for each in found if each.mask.size == item.size]


def mask_values(mask: Mask) -> dict[str, Any]:
    """A mask as the ``segmentation`` that COCO's tools take."""
    return {"size": list(mask.size), "counts": mask.counts}


def _copy(text: TextFile, start: int, end: int, file: BinaryIO) -> None:
    for piece in text.pieces(start, end):
        file.write(piece)
