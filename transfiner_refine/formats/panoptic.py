"""COCO panoptic: a JSON file and the folder of its PNGs, refined so that every image stays a partition.

A PNG has one segment id a pixel, its three bytes as red, green and blue. Things are refined; stuff and crowds are not.
Stuff and unlabelled pixels are the background: refined things overwrite them, but stuff of which nothing would be left
keeps its pixels. What a thing gives up goes to the nearest background that is left; without any, the thing keeps it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from transfiner_refine.errors import InputError, short
from transfiner_refine.formats.coco import finite, id_of, is_crowd, layout_of
from transfiner_refine.formats.coco_source import CocoSource
from transfiner_refine.formats.coco_write import Ids, write_lists
from transfiner_refine.formats.folders import Folder
from transfiner_refine.formats.json_stream import Ambiguous, compact, edited, parts, whole
from transfiner_refine.formats.label_maps import (
    LabelMask,
    is_among,
    merge,
    new_ids,
    places_of,
    shared_map,
    update_map,
)
from transfiner_refine.formats.png import png_size, read_pixels, write_png
from transfiner_refine.formats.records import (
    Format,
    ImageRecord,
    Instance,
    OpenOptions,
    RecordFault,
    Source,
    Written,
)
from transfiner_refine.formats.text_file import text_output
from transfiner_refine.formats.writing import Conversion, by_importance
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder, check_output_folder

_IDS = range(1, 1 << 24)


class PanopticSource(CocoSource):
    """A panoptic JSON file, its PNGs, and the images they belong to."""

    def __init__(self, path: Path, options: OpenOptions) -> None:
        """Walks over the JSON once; looks for the images, and decodes no PNG yet.

        The PNGs are in the folder of the same name without ``.json``, or beside it. ``image_info`` may name images and
        categories where the file does not.

        Raises:
            InputError: invalid JSON, no annotations, or no word on which categories are things.
        """
        super().__init__(path, options, "panoptic")
        self._max_pixels = options.max_image_pixels
        has_folder = png_folder(path).is_dir()
        self._pngs = Folder(png_folder(path) if has_folder else path.parent, remedy="check --masks")
        self._annotations, self._first = self.file.records, array("q", [0])
        self.check_usable()
        if not self.categories:
            remedy = "give --image-info with a panoptic annotation file"
            raise InputError("does not say which categories are things", file=path, remedy=remedy)
        self._owners: dict[PurePosixPath, int] = {}  # the first annotation of each PNG
        for position in range(len(self._annotations)):
            annotation = self._annotations.value(position)
            segments = _segments(annotation)
            self._first.append(self._first[-1] + (1 if segments is None else len(segments)))
            with suppress(InputError):  # named where the annotation is read
                name = self._png(annotation)
                self._owners.setdefault(name, position)
                self._pngs.read(name)
        others = self._pngs.files if has_folder else []  # what lies beside the JSON is not of its PNGs
        self._pngs.choose({*self._owners, *others})

    @property
    def num_images(self) -> int:
        return len(self._annotations)

    @property
    def num_instances(self) -> int:
        return self._first[-1]

    def unread(self) -> Iterator[ImageRecord | RecordFault]:
        for position in range(len(self._annotations)):
            yield from self._record(position)
        yield from self._pngs.not_copied(self._owners)

    def check_output(self, output: Path, *, overwrite: bool) -> None:
        super().check_output(output, overwrite=overwrite)
        check_output_folder(png_folder(output), [png_folder(self.file.path)], overwrite=overwrite)

    def _write(self, output: Path, results: Mapping[int, Mask], keep_boxes: bool) -> Written:
        written: list[Written] = []

        def texts(draft: Path) -> Iterator[tuple[int, str]]:
            for position in range(len(self._annotations)):
                indexes = range(self._first[position], self._first[position + 1])
                if masks := {index: results[index] for index in indexes if index in results}:
                    text, account = self._write_image(position, masks, draft, keep_boxes)
                    written.append(account)
                    yield position, text

        with _output(output) as (file, draft):
            self.file.rewrite(file, texts(draft))
            self._pngs.copy_rest(draft)
        covered = chain.from_iterable(each.covered for each in written)
        return Written(sum(each.overlap_pixels for each in written), tuple(covered))

    def _record(self, position: int) -> Iterator[ImageRecord | RecordFault]:
        """What is wrong with an annotation or its segments, then its image."""
        first, end = self._first[position], self._first[position + 1]
        try:
            annotation = self._annotations.value(position)
            name = self._png(annotation)
            path = self._pngs.folder / name
            if self._owners[name] != position:
                reason = f"{name} is the PNG of another annotation"
                raise InputError(reason, remedy="write one for each image")
            size = png_size(path)
            image_id = id_of(annotation, "image_id")
            if image_id is None:
                reason = f"image_id is {short(annotation.get('image_id'))}"
                raise InputError(reason, remedy="write an image's id")
            image = replace(self.find((self.listing or self.file).meant(image_id)), size=size)
        except InputError as error:
            yield RecordFault(self._blame(error, f"annotation {position}"), end - first, whole_image=True)
            return
        label_map = shared_map(partial(read_pixels, path, self._max_pixels, ids_in_colours=True))
        found: dict[int | None, Instance] = {}
        for place, entry in enumerate(annotation["segments_info"]):
            try:
                segment_id, category_id = self._segment(entry)
                if segment_id in found:
                    raise InputError(f"id {segment_id} is that of another segment of the image")
                mask, label = LabelMask(label_map, segment_id, size), f"{image.name} id {segment_id}"
                crowd = is_crowd(entry) and not self.options.refine_crowds
                score, is_stuff = finite(entry, "score"), category_id in self.stuff
                found[segment_id] = Instance(
                    first + place, mask, label, category_id, score, crowd, segment_id, is_stuff
                )
            except InputError as error:
                yield RecordFault(self._blame(error, f"{image.name}, segment {place}"))
        yield replace(image, instances=tuple(found.values()))

    def _segment(self, entry: Any) -> tuple[int, int]:
        """Id and category of an entry of ``segments_info``; raises InputError where it has no such two."""
        if not isinstance(entry, dict):
            raise InputError("is no JSON object")
        if isinstance(entry, Ambiguous):
            raise entry.error
        segment_id, category_id = whole(entry.get("id")), whole(entry.get("category_id"))
        if segment_id is None or segment_id not in _IDS:
            raise InputError(f"id is {short(entry.get('id'))}, not a number from 1 to {_IDS[-1]}")
        if category_id is None or category_id not in self.categories:
            reason = f"category_id is {short(entry.get('category_id'))}, which is not among the categories"
            raise InputError(reason)
        return segment_id, category_id

    def _write_image(
        self, position: int, masks: Mapping[int, Mask], draft: Path, keep_boxes: bool
    ) -> tuple[str, Written]:
        """Writes the PNG of an image with refined masks by index; gives the text of its annotation."""
        name = self._png(self._annotations.value(position))
        self._pngs.read(name)  # which refuses what has changed
        # segments that cannot be read were named when the source was iterated, and keep their pixels
        (image,) = [item for item in self._record(position) if isinstance(item, ImageRecord)]
        found = [(each.instance_id or 0, each) for each in image.instances]
        stuff = [segment_id for segment_id, each in found if each.is_stuff and not each.is_crowd]
        refined = [(segment_id, each) for segment_id, each in found if each.index in masks]
        refined.sort(key=lambda pair: -(pair[1].score or 0.0))
        pixels = read_pixels(self._pngs.folder / name, self._max_pixels, ids_in_colours=True)
        merged = update_map(
            pixels.values,
            [(segment_id, masks[each.index]) for segment_id, each in refined],
            is_among(pixels.values, [0, *stuff]),
            freed="nearest left",
            kept=stuff,
        )
        pixels.write(merged.values, draft / name)
        text = self._annotations.text(position)
        if not keep_boxes:
            text = _with_boxes(text, places_of(merged.values))
        covered = tuple(each.index for segment_id, each in refined if segment_id in merged.covered)
        return text, Written(merged.overlap_pixels, covered)

    def _png(self, annotation: Any) -> PurePosixPath:
        """The name of an annotation's PNG in the folder; raises InputError where it names no file in it."""
        file_name = annotation.get("file_name") if isinstance(annotation, dict) else None
        if not isinstance(file_name, str) or _segments(annotation) is None:
            raise InputError("has no file_name or no segments_info", remedy="check that the file is complete")
        name = PurePosixPath(file_name)
        if name.is_absolute() or ".." in name.parts or "\0" in file_name or not name.name:
            reason = f"file_name {short(file_name)} is not in the folder of the PNGs"
            raise InputError(reason, remedy="correct it")
        return name

    def _blame(self, error: InputError, label: str) -> InputError:
        return error if error.file else error.at(self.file.path, error.record or label)


@contextmanager
def _output(output: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """The JSON file and the folder of PNGs to write.

    The JSON gets its name after the PNGs: where there is one, all that it speaks of is there.
    """
    with text_output(output) as file, atomic_folder(png_folder(output)) as draft:
        yield file, draft
        file.flush()
        output.unlink(missing_ok=True)


def png_folder(path: Path) -> Path:
    """The folder of PNGs that belongs to a panoptic JSON file by its name: without ``.json`` and ``.gz``."""
    name = path.name
    for suffix in (".gz", ".json"):
        name = name.removesuffix(suffix) if name != suffix else name
    return path.with_name(name if name != path.name else f"{name}_png")


def write_panoptic(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a panoptic JSON file and the folder of its PNGs beside it.

    A pixel that several instances claim goes to things before crowds before stuff, then to the higher score, then
    to the earlier. What no instance claims is unlabelled.
    """
    ids, conversion, images = Ids(source), Conversion(source, results), list[dict[str, Any]]()
    with _output(output) as (file, draft):
        categories = [entry | {"isthing": entry.get("isthing", 1)} for entry in ids.categories]
        annotations = _annotations(conversion, ids, draft, images)
        write_lists(file, {"annotations": annotations, "images": images, "categories": categories})
    return conversion.written()


def _annotations(
    conversion: Conversion, ids: Ids, draft: Path, images: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Writes the PNGs; gives the annotations, and fills the list of images meanwhile."""
    for stem, (height, width), image in conversion:
        image_id, name = ids.image_id(image, len(images)), f"{stem}.png"
        file_name = {} if image.file_name is None else {"file_name": image.file_name}
        images.append({"id": image_id, **file_name, "width": width, "height": height})
        id_of = new_ids(image.instances, _IDS)
        ranked = by_importance(image.instances)
        ranked.sort(key=lambda each: 2 if each.is_stuff else each.is_crowd)
        masks = {id_of[each.index]: each.mask.decode().hard() for each in ranked}
        merged = merge(np.zeros((height, width), np.uint32), masks)
        covered = [each for each in ranked if id_of[each.index] in merged.covered]
        conversion.overlap(image, merged.overlap_pixels, covered)
        write_png(draft / name, merged.values)
        segments, places = [], places_of(merged.values)
        for each in image.instances:
            if (segment_id := id_of[each.index]) in places:
                score = {} if each.score is None else {"score": each.score}
                entry = {"id": segment_id, "category_id": ids.category_id(each)}
                entry |= _area_and_box(*places[segment_id])
                segments.append({**entry, "iscrowd": int(each.is_crowd), **score})
        yield {"image_id": image_id, "file_name": name, "segments_info": segments}


def _segments(annotation: Any) -> list[Any] | None:
    segments = annotation.get("segments_info") if isinstance(annotation, dict) else None
    return segments if isinstance(segments, list) else None


def _area_and_box(area: int, x0: int, y0: int, x1: int, y1: int) -> dict[str, Any]:
    return {"area": area, "bbox": [x0, y0, x1 - x0, y1 - y0]}


def _with_boxes(text: str, places: Mapping[int, tuple[int, ...]]) -> str:
    """The text of an annotation with ``area`` and ``bbox`` of its segments as they are now; ``places`` of their ids."""
    edits: list[tuple[int, int, str]] = []
    lists = (parts(text, start) for key, _, start, _ in parts(text) if key == "segments_info")
    for _, entry, start, _ in chain.from_iterable(lists):
        if isinstance(entry, dict) and (segment_id := whole(entry.get("id")) or 0) in places:
            new = _area_and_box(*places[segment_id])
            edits += [(at, end, compact(new[key])) for key, _, at, end in parts(text, start) if key in new]
    return edited(text, edits)


COCO_PANOPTIC = Format(
    "coco-panoptic",
    is_folder=False,
    recognise=lambda path: layout_of(path) == "panoptic",
    open=PanopticSource,
    write=write_panoptic,
    beside=png_folder,
)
