"""Cityscapes' instance results: a text file for each image, and a mask PNG for each of its lines.

    frankfurt_000000_000294_pred.txt       lines "masks/frankfurt_000000_000294_0.png 26 0.98"
    masks/frankfurt_000000_000294_0.png    any pixel but 0 belongs to the mask

A line is the path of a mask relative to the text file, a label id (not a train id) and a confidence, separated by
one space each, as Cityscapes' own evaluation reads it. Paths that leave the folder are refused. The image is the one
whose name, without ``_leftImg8bit``, begins the name of the text file; it may lie in a folder of its city.

Text files are copied as they are; refined masks are written as 0 and 255 (or in their own bit depth and palette).
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from transfiner_refine.errors import InputError
from transfiner_refine.formats.folders import first_files, first_lines
from transfiner_refine.formats.label_map_folders import MapFile, MaskFiles, label_of
from transfiner_refine.formats.label_map_formats import CITYSCAPES_MAPS, LABELS, base_of, image_key
from transfiner_refine.formats.label_maps import FileMask
from transfiner_refine.formats.png import write_png
from transfiner_refine.formats.records import Format, Instance, OpenOptions, Source, Written
from transfiner_refine.formats.writing import Conversion, stem_of
from transfiner_refine.image_folders import ImageTree, beginnings
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder

_LINE = re.compile(r"\S+\.png [-+]?\d+(\.\d*)? [-+.\deE]+$", re.IGNORECASE)
_FRAME = re.compile(r".+?_\d{6}_\d{6}(?=_|$)")  # CITY_SEQUENCE_FRAME


class CityscapesResultsSource(MaskFiles):
    """The results of a folder and its subfolders."""

    def __init__(self, folder: Path, options: OpenOptions) -> None:
        """Reads the text files, but no mask yet; raises InputError where there is none, or no image for any."""
        super().__init__(CITYSCAPES_MAPS, folder, options)
        names = [name for name in self.files if name.suffix.lower() == ".txt"]
        if not names:
            raise InputError("holds no text files of results", file=folder, remedy="check --masks")
        tree = None if options.images is None else ImageTree(options.images, key=image_key)
        seen: dict[PurePosixPath, str] = {}
        entries = []
        for name in names:
            lines, error = list[MapFile](), None
            try:
                for number, text in enumerate(self.lines(name), 1):
                    if text:
                        lines.append(self._line(name, number, text, seen))
            except InputError as unreadable:
                error = unreadable
            self.groups.append(lines)
            entry = self.entry(name, _stem(name, tree), lines)
            entries.append(replace(entry, error=error, count=1 if error else len(lines)))
        self.entries = tuple(entries)
        self.find_images(tree)

    def files_of(self, position: int) -> Collection[PurePosixPath]:
        return [self.entries[position].name, *super().files_of(position)]

    def _line(self, name: PurePosixPath, number: int, text: str, seen: dict[PurePosixPath, str]) -> MapFile:
        try:
            path, label_id, score = _parsed(name, text)
            if path in seen:
                reason = f"names the mask of {seen[path]} again"
                raise InputError(reason, remedy="write one file for each mask")
        except InputError as error:
            return MapFile(name, error=error.at(self.folder / name, f"line {number}"))
        seen[path] = label = f"{name} line {number}"
        try:
            self.read(path)
        except InputError as error:
            return MapFile(path, error=error.at(record=label))
        mask = FileMask(self.folder / path, self.options.max_image_pixels, "any")
        return MapFile(path, Instance(0, mask, label, label_id, score))


def _parsed(name: PurePosixPath, text: str) -> tuple[PurePosixPath, int, float]:
    """Mask relative to the folder, label id and confidence of a line; raises InputError where it has no such three."""
    fields = text.split(" ")
    if len(fields) != 3:
        reason = f"has {len(fields)} fields, not a path, a label id and a confidence"
        remedy = "separate the three by one space each, and use paths without spaces"
        raise InputError(reason, remedy=remedy)
    try:
        number, score = float(fields[1]), float(fields[2])
    except ValueError:
        number = score = math.nan
    if not math.isfinite(score) or not number.is_integer():
        reason = f"has label id {fields[1][:30]!r} and confidence {fields[2][:30]!r}"
        raise InputError(reason, remedy="write a whole number and a number")
    return _inside(name.parent, fields[0]), int(number), score


def _inside(parent: PurePosixPath, text: str) -> PurePosixPath:
    """The path of a mask relative to the folder; raises InputError where it lies outside."""
    path = PurePosixPath(text.replace("\\", "/"))
    inside = PurePosixPath(posixpath.normpath(parent / path))
    unsafe = path.is_absolute() or "\0" in text or any(":" in part for part in path.parts)
    if unsafe or not path.name or inside.parts[:1] in ((), ("..",)):
        raise InputError(f"points outside of the folder: {text[:100]!r}", remedy="use paths inside of it")
    return inside


def _stem(name: PurePosixPath, tree: ImageTree | None) -> PurePosixPath:
    """Where the image of a text file must lie and what it must be called, without ``_leftImg8bit``."""
    stem = name.with_suffix("")
    if tree is not None:
        known = next((each for each in beginnings(stem.name) if tree.has_key(each)), None)
        if known is not None:
            return stem.with_name(known)
    frame = _FRAME.match(stem.name)
    return stem if frame is None else stem.with_name(frame.group())


def _is_results(path: Path) -> bool:
    """A folder of text files most of whose lines are a PNG, a number and a number."""
    lines = [line for file in first_files(path, ".txt") for line in first_lines(file)]
    return 2 * sum(_LINE.match(line) is not None for line in lines) > len(lines)


def _mask_stem(stem: PurePosixPath) -> PurePosixPath:
    """How the names of an image's masks begin: without spaces, for Cityscapes' evaluation would split there."""
    base = base_of(stem)
    return base.with_name("_".join(base.name.split()))


def _write(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a text file an image and a 0/255 PNG an instance. Instances without a score get confidence 1."""
    conversion = Conversion(source, results, _mask_stem)
    with atomic_folder(output) as draft:
        for stem, _, image in conversion:
            lines = []
            for number, instance in enumerate(image.instances):
                label = label_of(LABELS, instance.category_id, source.categories)
                if label is None or instance.is_crowd:
                    what = (
                        "it is a crowd (see --refine-crowds)"
                        if instance.is_crowd
                        else f"its category is {instance.category_id}"
                    )
                    remedy = "write another format; Cityscapes' results are single objects of its classes"
                    conversion.leave_out(image, instance, what, remedy)
                    continue
                mask = f"{stem.name}_{number:04d}.png"
                foreground = instance.mask.decode().hard().paste()
                write_png(draft / stem.parent / mask, np.where(foreground, 255, 0).astype(np.uint8))
                score = 1.0 if instance.score is None else instance.score
                lines.append(f"{mask} {label} {score!r}\n")
            text = draft / f"{base_of(stem_of(image))}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("".join(lines), encoding="utf-8")
    return conversion.written()


CITYSCAPES_RESULTS = Format("cityscapes-results", True, _is_results, CityscapesResultsSource, _write)
