"""The records of one image of a COCO file: parsed into instances, and written with another mask."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from transfiner_refine.errors import InputError, short
from transfiner_refine.formats.coco import RawRecord, category_of, finite, is_crowd, key_of
from transfiner_refine.formats.json_stream import Ambiguous, compact, edited, parse, parts, whole
from transfiner_refine.formats.polygons import coco_polygons
from transfiner_refine.formats.records import ImageRecord, Instance, OpenOptions, fitted
from transfiner_refine.formats.segmentation import (
    SLACK,
    contradiction,
    mask_from_segmentation,
    masks_from_segmentations,
    reach,
    with_area,
)
from transfiner_refine.images import image_sizes
from transfiner_refine.masks import Mask

_SIZE = re.compile(r'"size"\s*:\s*\[\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\]')


@dataclass(frozen=True)
class CocoInstance(Instance):
    """An instance with what evaluation alone asks for: ``area`` and ``annotation_id`` as its record has them."""

    mask: Mask
    area: Any = None
    annotation_id: Any = None


@dataclass(frozen=True)
class CocoImage(ImageRecord):
    """An image whose records are not parsed yet; that is done where there is time for it, in another process."""

    file: Path = Path()  # the COCO file
    records: tuple[RawRecord, ...] = ()  # of its instances
    stuff: Collection[int] = ()  # ids of categories that are no things
    fit_masks: bool = False  # as in ``OpenOptions``
    refine_crowds: bool = False

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
        instances, faults = list[Instance](), list[tuple[int, InputError]]()
        parsed = [_parsed(text) for _, _, text in self.records]
        segmentations = [each.get("segmentation") if isinstance(each, dict) else None for each in parsed]
        # an image without a stated size is opened for it, once
        size = cache(self._image_size)
        masks = masks_from_segmentations(segmentations, size)
        turned = self._turned(segmentations, masks)
        both = zip(parsed, segmentations, masks, strict=True)
        for (index, label, _), (record, segmentation, mask) in zip(self.records, both, strict=True):
            is_annotation = label.startswith("annotation")
            if is_annotation and isinstance(record, dict) and "id" in record:
                label = f"annotation id {short(record['id'])}"
            try:
                _check_record(record, segmentation, by_name=not is_annotation)
                if isinstance(mask, InputError):
                    raise mask
                category_id, score = category_of(record), finite(record, "score")
                crowd = is_crowd(record) and not self.refine_crowds
                if turned and isinstance(segmentation, list):
                    raise InputError(turned, remedy="say with --orientation how the images were turned")
                if reason := contradiction(record, mask, size, is_exact=is_annotation):
                    raise InputError(reason, remedy="correct it, or leave out what is wrong")
                if self.fit_masks and self.path is not None:
                    fit = fitted(mask, self.path, self.orientation)
                    mask = mask if fit is mask else Mask.from_window(fit.decode())
                instances.append(
                    CocoInstance(
                        index, mask, label, category_id, score, crowd, whole(record.get("id")),
                        category_id in self.stuff, record.get("area"), record.get("annotation_id"),
                    )
                )  # fmt: skip
            except InputError as error:
                faults.append((index, error.at(error.file or self.file, error.record or label)))
        image = ImageRecord(
            self.path, self.name, tuple(instances), self.size, self.image_id, self.file_name, self.orientation
        )
        return image, faults

    def _image_size(self) -> tuple[int, int]:
        if self.path is not None and (self.size is None or self.orientation != "auto"):
            size = image_sizes(self.path, self.orientation)[0]
            if self.size in (None, size, size[::-1]):
                return size
        if self.size is not None:
            return self.size
        remedy = "give the photos with --images, or sizes with --image-info"
        raise InputError("its polygons do not say how large the image is", remedy=remedy)

    def _turned(self, segmentations: Sequence[Any], masks: Sequence[Mask | InputError]) -> str | None:
        """Why the polygons are not in the frame of the stated size, but in that of the image turned by 90°."""
        if self.size is None or self.path is None or self.orientation != "auto":
            return None
        height, width = self.size
        for segmentation, mask in zip(segmentations, masks, strict=True):
            if not isinstance(segmentation, list) or not segmentation or not isinstance(mask, Mask):
                continue
            _, right, bottom = reach(with_area(segmentation))
            beyond = right > width + SLACK or bottom > height + SLACK
            if beyond and right <= height + SLACK and bottom <= width + SLACK:
                with suppress(InputError):  # said when the image is read
                    if self.size in (sizes := image_sizes(self.path)) and len(sizes) == 2:
                        where = (
                            f"{height}×{width} (width × height), which is how its EXIF orientation turns it"
                        )
                        return f"the image has a polygon that fits it as {where}"
                return None
        return None


def _parsed(text: str | InputError) -> Any:
    try:
        return parse(text) if isinstance(text, str) else text
    except InputError as error:
        return error


def _check_record(record: Any, segmentation: Any, *, by_name: bool) -> None:
    """Raises InputError where it is not known what a record says, or of which image."""
    if isinstance(record, InputError):
        raise record
    if key_of(record, by_name=by_name) is None:
        is_object = isinstance(record, dict)
        reason = f"image_id is {short(record.get('image_id'))}" if is_object else "is no JSON object"
        raise InputError(reason, remedy="write the id of its image into the record")
    for part in (record, segmentation):
        if isinstance(part, Ambiguous):
            raise part.error


def record_with_mask(text: str, mask: Mask, keep_boxes: bool, options: OpenOptions) -> str:
    """The text of a record with another mask; what does not follow from the mask stays as it is."""
    found = list(parts(text))
    record = {key: old for key, old, _, _ in found}
    segmentation, edits = record.get("segmentation"), []
    as_runs = isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list)
    new: dict[str, Any] = {"segmentation": mask_values(mask, as_runs=as_runs and is_crowd(record))}
    if isinstance(segmentation, list) and options.polygons == "keep" and mask.area:
        new["segmentation"] = polygons = coco_polygons(mask, options.polygon_tolerance)
        mask = mask_from_segmentation(polygons, lambda: mask.size)
    if not keep_boxes:
        x0, y0, x1, y1 = mask.box
        new |= {"bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)], "area": mask.area}
    for key, old, start, end in found:
        if key in new:
            value = float(mask.area) if key == "area" and isinstance(old, float) else new[key]
            edits.append((start, end, compact(value)))
    return edited(text, edits)


def mask_values(mask: Mask, *, as_runs: bool = False) -> dict[str, Any]:
    """A mask as the ``segmentation`` that COCO's tools take; by convention crowds have their runs as a list."""
    return {"size": list(mask.size), "counts": mask.runs.tolist() if as_runs else mask.counts}
