"""COCO files as a source of masks to refine, which is written again with new masks in its records.

Records are never rebuilt. What was refined gets a new ``segmentation`` (and ``bbox`` and ``area`` where it
had them) in the place of the old one; all other bytes of the file are written as they were read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transfiner_refine.errors import InputError, counted, short
from transfiner_refine.formats.coco import (
    CocoFile,
    ImageId,
    ImageKey,
    Layout,
    key_of,
    layout_of,
    name_of,
    names_in,
)
from transfiner_refine.formats.coco_records import CocoImage, CocoInstance, record_with_mask
from transfiner_refine.formats.json_stream import parts, whole
from transfiner_refine.formats.records import (
    ImageRecord,
    OpenOptions,
    RecordFault,
    UnreadSource,
    Written,
)
from transfiner_refine.formats.text_file import text_output
from transfiner_refine.image_folders import ImageFolder
from transfiner_refine.masks import Mask
from transfiner_refine.output import check_output_file

_LISTED = 5  # category ids that a note names


class CocoSource(UnreadSource):
    """A COCO file and the images it speaks of. Of the file, offsets are held, not records."""

    def __init__(
        self,
        path: Path,
        options: OpenOptions | None = None,
        layout: Layout | None = None,
        listing: CocoFile | None = None,
    ) -> None:
        """Walks over the file once; no mask is decoded and no image looked for yet.

        Without a ``layout``, the content tells its kind; a ``listing`` stands in for what names the images otherwise.

        Raises:
            InputError: invalid JSON, another layout, or an annotation file with ``image_info`` beside it.
        """
        layout, self.options = layout or layout_of(path) or "annotations", options or OpenOptions()
        options = self.options
        self.file, self._inputs = CocoFile(path, layout), [path]
        # what names the images and categories: the file itself or that of ``--image-info``
        self.listing = listing or (self.file if layout in ("annotations", "panoptic") else None)
        if options.image_info is not None:
            if layout == "annotations" or (self.file.listed and self.file.categories):
                raise InputError("names its images itself", file=path, remedy="leave --image-info out")
            self._inputs.append(options.image_info)
            self.listing = CocoFile(options.image_info, "info")
        if self.listing is not None and self.listing is not self.file:
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
    def notes(self) -> Sequence[str]:
        found, pieces = list[str](), counted(self.file.dropped_pieces, "polygon piece")
        if self.file.dropped_pieces:
            found.append(
                f"Dropped, for they hold no pixel: {pieces} of fewer than three points or without area."
            )
        if self.categories and (unknown := self.file.used_categories.difference(self.categories)):
            first = ", ".join(map(str, sorted(unknown)[:_LISTED]))
            found.append(f"Category ids that are not among the categories: {len(unknown)} ({first}).")
        return found

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
        listed = self.file.listed if self.listing is self.file else {}
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
            options = {key: getattr(self.options, key) for key in ("fit_masks", "refine_crowds")}
            yield CocoImage(**vars(image), **options, file=self.file.path, records=raw, stuff=self.stuff)
        self.file.text.check_unchanged()

    def find(self, key: ImageKey, *, is_needed: bool = True) -> ImageRecord:
        """An image without its instances.

        Raises:
            InputError: it is not listed, or its file is not there though it is needed: there is something to refine.
        """
        image_id, name = (None, key[0]) if isinstance(key, tuple) else (key, self.file.own_names.get(key))
        names = [name] if name else []
        size, path = None, None
        listing = self.listing  # a panoptic file may name categories only
        if listing and image_id is not None and (listing.listed or self.file.layout != "panoptic"):
            entry = listing.entry(image_id)
            names = names_in(entry)
            height, width = whole(entry.get("height")) or 0, whole(entry.get("width")) or 0
            size = (height, width) if height > 0 and width > 0 else None
        name, label = next(iter(names), None), next(iter(names), name_of(key))
        try:
            if self._folder is not None:
                path = self._folder.only if self.num_images == 1 else None  # one image, whatever its name
                if path is None:
                    by_id = None if names or image_id is None else _with_id(self._folder, image_id)
                    path = by_id or self._folder.named(*names or [label])
                name = name or path.relative_to(self._folder.root).as_posix()
        except InputError:
            if is_needed:
                raise
        return ImageRecord(path, label, (), size, image_id, name, self.options.orientation)

    def check_usable(self) -> None:
        """Raises InputError where there is nothing to refine, or none of the images is found."""
        if not len(self.file.records):
            noun = "records" if self.file.layout in ("results", "lines") else "annotations"
            remedy = "give a file with at least one mask"
            raise InputError(f"holds no {noun}", file=self.file.path, remedy=remedy)
        first, count = None, len(self.file.images)
        for key in self.file.images:
            try:
                self.find(key)
                return
            except InputError as error:
                first = first or error
        if first is not None:
            reason = first.reason if count == 1 else f"none of the {count} images was found; {first.reason}"
            raise InputError(reason, file=first.file, record=first.record, remedy=first.remedy)

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
        self.file.text.check_unchanged()
        return self._write(output, results, keep_boxes)

    def _write(self, output: Path, results: Mapping[int, Mask], keep_boxes: bool) -> Written:
        refined = (index for index in range(self.num_instances) if index in results)
        with text_output(output) as file:
            self.file.rewrite(
                file, ((index, self._with_mask(index, results[index], keep_boxes)) for index in refined)
            )
        return Written()

    def record_texts(self, results: Mapping[int, Mask], indexes: Iterable[int]) -> Iterator[str]:
        """Sound records as they are to be written, each on one line."""
        for index in indexes:
            mask = results.get(index)
            text = self.file.records.text(index) if mask is None else self._with_mask(index, mask, False)
            yield text.replace("\n", " ").replace("\r", " ")  # in JSON these stand between values only

    def _fits(self, record: Mapping[str, Any], mask: Mask) -> bool:
        """Whether a mask can be polygons in the frame of its record; one that was fitted to its image cannot."""
        key = key_of(record)
        stated = None if key is None or self.listing is None else self.find(self.listing.meant(key)).size
        return stated in (None, mask.size)

    def _with_mask(self, index: int, mask: Mask, keep_boxes: bool) -> str:
        """The text of a sound record with another mask."""
        try:
            text, options = self.file.records.text(index), self.options
            if options.fit_masks and not self._fits({key: old for key, old, _, _ in parts(text)}, mask):
                options = replace(options, polygons="rle")
            return record_with_mask(text, mask, keep_boxes, options)
        except (RecursionError, ValueError):  # it was sound when it was read as an instance
            raise self.file.text.changed() from None


def sound_images(
    source: CocoSource, faults: list[InputError], *, only_listed: bool = False
) -> Iterator[tuple[ImageRecord, list[CocoInstance]]]:
    """The images of a file that is needed as a whole, with instances whose masks have the size stated for the image.

    ``faults`` takes what is wrong with all else, for ``refuse``; with ``only_listed``, records of images that are not
    known, or not there, are passed over.
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
                    reason = f"mask of size {list(each.mask.size)} in an image of {short(list(item.size))}"
                    faults.append(InputError(f"{reason} (height, width)", file=file, record=each.label))
            yield item, [each for each in found if each.mask.size == item.size]


def _with_id(folder: ImageFolder, image_id: ImageId) -> Path:
    """The image of an id; a number that is written as text may be padded with zeros, too."""
    try:
        return folder.with_id(image_id)
    except InputError:
        if isinstance(image_id, str) and (number := whole(image_id)) is not None:
            return folder.with_id(number)
        raise
