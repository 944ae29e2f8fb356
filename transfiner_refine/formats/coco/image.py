"""One image of a COCO file with its records as text, to be parsed where there is time for it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from transfiner_refine.errors import InputError
from transfiner_refine.formats.coco.index import Layout
from transfiner_refine.formats.coco.records import instance_of
from transfiner_refine.formats.json_scan import parse, short
from transfiner_refine.formats.records import ImageRecord, Instance
from transfiner_refine.formats.segmentation import compressed_masks
from transfiner_refine.images import upright_size

__all__ = ["CocoImage", "blamed", "own_label"]

_SIZE = re.compile(r'"size"\s*:\s*\[\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\]')


@dataclass(frozen=True)
class CocoImage(ImageRecord):
    """An image whose instances are not parsed yet.

    Attributes:
        file: the COCO file.
        layout: its kind.
        records: index, label and text of each record; in place of the text why there is none.
        stuff: ids of categories that are no things.
    """

    file: Path = Path()
    layout: Layout = "results"
    records: tuple[tuple[int, str, str | InputError], ...] = ()
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
        image_size = cache(self._image_size)  # a photo without a stated size is opened for it
        instances: list[Instance] = []
        faults: list[tuple[int, InputError]] = []
        parsed: list[Any] = []
        for _, _, text in self.records:
            try:
                parsed.append(text if isinstance(text, InputError) else parse(text))
            except InputError as error:
                parsed.append(error)
        masks = compressed_masks(
            [each.get("segmentation") if type(each) is dict else None for each in parsed]
        )
        for (index, label, _), record, mask in zip(self.records, parsed, masks, strict=True):
            label = own_label(label, record, self.layout)
            try:
                if isinstance(record, InputError):
                    raise record
                instances.append(instance_of(record, index, label, image_size, self.stuff, mask))
            except InputError as error:
                faults.append((index, blamed(error, self.file, label)))
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


def own_label(label: str, record: Any, layout: Layout) -> str:
    """How a person finds a record: by its own id where it is an annotation that has one."""
    if layout == "annotations" and isinstance(record, dict) and "id" in record:
        return f"annotation id {short(record['id'])}"
    return label


def blamed(error: InputError, file: Path, label: str) -> InputError:
    """An error with the file and the record it was found in."""
    return InputError(
        error.reason, file=error.file or file, record=error.record or label, remedy=error.remedy
    )
