"""Cityscapes instance results: a text file for each image, and a mask PNG for each of its lines.

    frankfurt_000000_000294_pred.txt       lines "masks/frankfurt_000000_000294_0.png 26 0.98"
    masks/frankfurt_000000_000294_0.png    any pixel but 0 belongs to the mask

A line is the path of a mask relative to the text file, a label id (not a train id) and a confidence, separated by
one space each, as Cityscapes' own evaluation reads it. Paths that leave the folder are refused. The photo is the one
whose name, without ``_leftImg8bit``, begins the name of the text file; it may lie in a folder of its city.

Text files are copied as they are; refined masks are written as 0 and 255 (or in their own bit depth and palette).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from transfiner_refine.errors import InputError
from transfiner_refine.formats.cityscapes_labels import (
    LABELS,
    base_of,
    cityscapes_photos,
    label_id,
    photo_of,
)
from transfiner_refine.formats.folders import FolderEntry, FolderSource, ImageTree, first_files
from transfiner_refine.formats.palette import write_grey
from transfiner_refine.formats.png import PngFileMask
from transfiner_refine.formats.png_pixels import read_pixels, write_like
from transfiner_refine.formats.records import Format, Instance, OpenOptions, RecordFault, Source, Written
from transfiner_refine.formats.text_lines import LINES_LOOKED_AT, first_lines, read_lines
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.images import MAX_IMAGE_PIXELS
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder

__all__ = ["CITYSCAPES_RESULTS", "CityscapesResultsSource"]

_FIELDS = 3
_LINE = re.compile(r"\S+\.png [-+]?\d+(\.\d*)? [-+.\deE]+$", re.IGNORECASE)
_FRAME = re.compile(r".+?_\d{6}_\d{6}(?=_|$)")  # CITY_SEQUENCE_FRAME


@dataclass(frozen=True)
class _Line:
    """One line of a text file.

    Attributes:
        label: how messages call it.
        mask: the mask's file, relative to the folder.
        category_id: label id.
        score: confidence.
    """

    label: str
    mask: PurePosixPath
    category_id: int
    score: float


class CityscapesResultsSource(FolderSource):
    """The results of a folder and its subfolders."""

    def __init__(self, folder: Path, images: Path | None, max_pixels: int = MAX_IMAGE_PIXELS) -> None:
        """Reads the text files, but no mask yet.

        Args:
            folder: the folder of the results.
            images: the folder of the photos, None to do without them.
            max_pixels: the largest mask image that is decoded.

        Raises:
            InputError: no such folder, no text file in it, or no image that can be used.
        """
        super().__init__(folder, images)
        self._max_pixels = max_pixels
        names = [name for name in self.files if name.suffix.lower() == ".txt"]
        if not names:
            raise InputError("holds no text files of results", file=folder, remedy="check --masks")
        photos = None if images is None else cityscapes_photos(images, [])
        seen: dict[PurePosixPath, str] = {}
        self._lines: list[list[_Line | RecordFault]] = []
        found = []
        for name in names:
            error = None
            try:
                lines = [
                    self._line(name, number, text, seen) for number, text in read_lines(folder / name) if text
                ]
            except InputError as unreadable:
                error, lines = unreadable, []
            self._lines.append(lines)
            found.append(
                FolderEntry(name, _stem(name, photos), len(lines) if error is None else 1, error=error)
            )
        self.entries = tuple(found)
        self.find_images(photos)

    @property
    def categories(self) -> Mapping[int, str]:
        return LABELS

    def instances_of(
        self,
        position: int,
        size: Callable[[], tuple[int, int]],  # noqa: ARG002  each mask has its own
    ) -> Iterator[Instance | RecordFault]:
        for number, line in enumerate(self._lines[position]):
            if isinstance(line, RecordFault):
                yield line
            else:
                yield Instance(
                    index=number,
                    mask=PngFileMask(self.folder / line.mask, self._max_pixels, any_value=True),
                    label=line.label,
                    category_id=line.category_id,
                    score=line.score,
                )

    def stated_size(self, position: int) -> tuple[int, int] | None:  # noqa: ARG002
        return None

    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        for number, mask in masks.items():
            line = self._lines[position][number]
            assert isinstance(line, _Line)
            original, target = self.folder / line.mask, draft / line.mask
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels = read_pixels(original, self._max_pixels)
            white = max(1, int(pixels.values.max())) if pixels.palette else pixels.white
            write_like(original, np.where(mask.decode().paste(), white, 0), target)
        return Written()

    def usual_image_name(self, position: int) -> str | None:
        return photo_of(self.entries[position].stem)

    def _line(
        self, name: PurePosixPath, number: int, text: str, seen: dict[PurePosixPath, str]
    ) -> _Line | RecordFault:
        label = f"{name} line {number}"
        try:
            return self._parsed(name, label, text, seen)
        except InputError as error:
            return RecordFault(
                InputError(
                    error.reason, file=self.folder / name, record=f"line {number}", remedy=error.remedy
                )
            )

    def _parsed(self, name: PurePosixPath, label: str, text: str, seen: dict[PurePosixPath, str]) -> _Line:
        fields = text.split(" ")
        if len(fields) != _FIELDS:
            raise InputError(
                f"has {len(fields)} fields, not a path, a label id and a confidence",
                remedy="separate the three by one space each, and use paths without spaces",
            )
        try:
            number, score = float(fields[1]), float(fields[2])
        except ValueError:
            number = score = math.nan
        if not math.isfinite(score) or not number.is_integer():
            raise InputError(
                f"has label id {fields[1][:30]!r} and confidence {fields[2][:30]!r}",
                remedy="write a whole number and a number",
            )
        mask = _inside(name.parent, fields[0])
        if mask in seen:
            raise InputError(f"names the mask of {seen[mask]} again", remedy="write one file for each mask")
        seen[mask] = label
        return _Line(label, mask, int(number), score)


def recognise(path: Path) -> bool:
    """A folder of text files whose lines are a PNG, a number and a number."""
    lines = [line for file in first_files(path, ".txt") for line in first_lines(file)]
    return bool(lines) and all(_LINE.match(line) for line in lines[:LINES_LOOKED_AT])


def open_cityscapes_results(path: Path, options: OpenOptions) -> CityscapesResultsSource:
    """Reads the results below a folder.

    Raises:
        InputError: no such folder, no text file in it, or no image that can be used.
    """
    return CityscapesResultsSource(path, options.images, options.max_image_pixels)


def write(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a text file an image and a 0/255 PNG an instance. Instances without a score get confidence 1.

    Raises:
        OutputError: the disk refused.
    """
    conversion = Conversion(source, results, base_of)
    with atomic_folder(output) as draft:
        for base, _, image in conversion:
            lines = []
            for number, instance in enumerate(image.instances):
                label = label_id(instance.category_id, source.categories)
                if label is None or instance.is_crowd:
                    what = "it is a crowd" if instance.is_crowd else f"its category is {instance.category_id}"
                    remedy = "write another format; Cityscapes' results are single objects of its classes"
                    conversion.leave_out(image, instance, what, remedy)
                    continue
                # no space: the evaluation would split there
                mask = PurePosixPath("_".join(f"{base.name}_{number:04d}.png".split()))
                full = instance.mask.decode().hard().paste()
                write_grey(draft / base.parent / mask, np.where(full, 255, 0).astype(np.uint8))
                score = 1.0 if instance.score is None else instance.score
                lines.append(f"{mask} {label} {score!r}\n")
            text = draft / f"{base}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("".join(lines), encoding="utf-8")
    return conversion.written()


def _inside(parent: PurePosixPath, text: str) -> PurePosixPath:
    """The path of a mask relative to the folder.

    Raises:
        InputError: it lies outside.
    """
    path = PurePosixPath(text.replace("\\", "/"))
    parts: list[str] = []
    for part in (*parent.parts, *path.parts):
        if part == "..":
            if not parts:
                parts = [part]
                break
            parts.pop()
        else:
            parts.append(part)
    unsafe = path.is_absolute() or "\0" in text or any(":" in part for part in path.parts)
    if unsafe or not path.name or parts[:1] in ([], [".."]):
        raise InputError(f"points outside of the folder: {text[:100]!r}", remedy="use paths inside of it")
    return PurePosixPath(*parts)


def _stem(name: PurePosixPath, photos: ImageTree | None) -> PurePosixPath:
    """Where the photo of a text file must lie and what it must be called, without ``_leftImg8bit``."""
    stem = name.with_suffix("")
    shorter = stem.name
    while photos is not None:
        if photos.has_key(shorter):
            return stem.with_name(shorter)
        if "_" not in shorter:
            break
        shorter = shorter.rpartition("_")[0]
    frame = _FRAME.match(stem.name)
    return stem if frame is None else stem.with_name(frame.group())


CITYSCAPES_RESULTS = Format(
    "cityscapes-results",
    "Cityscapes instance results (txt + PNG)",
    True,
    recognise,
    open_cityscapes_results,
    write,
)
