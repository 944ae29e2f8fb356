"""YOLO segmentation: a text file for each image, a line for each instance, in shares of the image's size.

    labels/train/street.txt                lines "CLASS x1 y1 x2 y2 ... [CONFIDENCE] [TRACK_ID]"
    images/train/street.jpg

Give the folder of the text files, or the one that has it as ``labels``. An odd number of numbers after the class means
that the last one is a confidence, or a track id where some line of the folder ends in 2 or more; lines of an even
number end in both where some of them end in 2 or more. Sizes come from the images (upright, as ultralytics takes
them), so these are needed. Polygons are read by the rule of ``polygons.py``: pixel centres, and to the pixel where
OpenCV's contours were written down in the image's own resolution.

A line holds one polygon and no hole. Masks of several parts or with holes are written as one polygon whose pieces hang
together by bridges without width (``polygons.joined_outline``). This package reads the same pixels again, and so does
ultralytics, but for what it paints along bridges from part to part and where pixels touch at a corner.

Refined lines keep class, confidence and track id as they were written; all other lines and files stay byte for byte.
Written from other formats, the category id is the class (0 where there is none), and names go to ``classes.txt``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.class_names import check_class_names, read_class_names, write_class_names
from transfiner_refine.formats.folders import (
    FolderEntry,
    FolderSource,
    first_files,
    first_lines,
    write_file,
)
from transfiner_refine.formats.polygons import fill_contour, fill_polygons, is_pixel_contour, joined_outline
from transfiner_refine.formats.records import Format, Instance, OpenOptions, RecordFault, Source, Written
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.image_folders import ImageTree
from transfiner_refine.images import SUFFIXES
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.output import atomic_folder

CLASSES_FILE = "classes.txt"
_LABELS = PurePosixPath("labels")
_FEWEST_NUMBERS = 6  # three points
_TOLERANCE = 0.01  # how far beyond the image a share may lie; as ultralytics


@dataclass(frozen=True)
class SharesMask:
    """A polygon in shares of the image's size: [points, xy] in [0, 1], and (height, width) in pixels."""

    shares: NDArray[np.float64]
    size: tuple[int, int]

    def decode(self) -> MaskWindow:
        """The mask inside its bounding box, bool; raises InputError where the polygon is longer than any outline."""
        points = self.shares * self.size[::-1]
        if is_pixel_contour(points):
            return fill_contour(points, self.size)
        return fill_polygons([points], self.size)


class YoloSource(FolderSource):
    """The label files of a folder and its subfolders."""

    def __init__(self, folder: Path, options: OpenOptions) -> None:
        super().__init__(folder, options.images)
        if options.images is None:
            reason = "holds shares of image sizes, so it cannot be read without the images"
            raise InputError(reason, file=folder, remedy="give their folder with --images")
        own_names = folder / CLASSES_FILE
        chosen = options.class_names or (own_names if own_names.is_file() else None)
        self.categories = {} if chosen is None else read_class_names(chosen)
        self._lines: dict[PurePosixPath, list[tuple[int, str]]] = {}  # of each file: number from 1, and text
        names = [name for name in self.files if name.suffix.lower() == ".txt" and name.name != CLASSES_FILE]
        self.parse_entries(names, self._entry)
        if not self.entries:
            raise InputError("holds no label files", file=folder, remedy="give a folder of STEM.txt")
        # 0 where lines of a class and an odd number of numbers end in a track id, 1 where those of an even one do
        self._with_ids = {
            len(text.split()) % 2 for lines in self._lines.values() for _, text in lines if _ends_in_id(text)
        }
        self.find_images(ImageTree(options.images))

    def _entry(self, name: PurePosixPath) -> FolderEntry | None:
        lines = [(at, text) for at, text in enumerate(self.lines(name), 1) if text.strip()]
        if lines and _is_image_name(lines[0][1]):  # a list of images, as exports have it for each split
            return None
        self._lines[name] = lines
        stem = (name.relative_to(_LABELS) if _LABELS in name.parents else name).with_suffix("")
        return FolderEntry(name, stem, len(lines))

    def instances_of(
        self, position: int, size: Callable[[], tuple[int, int]]
    ) -> Iterator[Instance | RecordFault]:
        name = self.entries[position].name
        lines = self._lines[name]
        image_size = size() if lines else (0, 0)
        for index, (number, text) in enumerate(lines):
            extra = self._extra(text)
            try:
                numbers = _polygon(text, extra)
            except InputError as error:
                yield RecordFault(error.at(self.folder / name, f"line {number}"))
                continue
            has_score = extra == 2 or (extra == 1 and 0 not in self._with_ids)
            mask = SharesMask(numbers[1 : len(numbers) - extra].reshape(-1, 2), image_size)
            score = float(numbers[-extra]) if has_score else None
            yield Instance(index, mask, f"{name} line {number}", int(numbers[0]), score)

    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        name = self.entries[position].name
        lines = self.text(name).split("\n")
        for index, mask in masks.items():
            number, text = self._lines[name][index]
            fields = text.split()
            ending = fields[len(fields) - self._extra(text) :]
            end = "\r" if lines[number - 1].endswith("\r") else ""
            lines[number - 1] = " ".join([fields[0], *_shares(mask.decode()), *ending]) + end
        self.write_text(name, "\n".join(lines), draft)
        return Written()

    def _extra(self, text: str) -> int:
        """How many numbers come after the polygon of a line."""
        return 1 if len(text.split()) % 2 == 0 else 2 if 1 in self._with_ids else 0


def recognise(path: Path) -> bool:
    """A folder of text files; most of their first lines are a class and numbers, and some are polygons."""
    files = [file for file in first_files(path, ".txt") if file.name != CLASSES_FILE]
    lines = [line for file in files for line in first_lines(file) if not _is_image_name(line)]
    found = [numbers for numbers in map(_numbers, lines) if numbers is not None and len(numbers) > 4]
    right = [len(each) > 6 for each in found if each[0].is_integer() and np.abs(each[1:5]).max() < 2]
    return any(right) and 2 * len(right) > len(lines)


def write(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a label file an image, and ``classes.txt`` where the source names its categories."""
    conversion = Conversion(source, results, _named, ending=".txt")
    with atomic_folder(output) as draft:
        for stem, _, image in conversion:
            lines = []
            for instance in image.instances:
                mask = instance.mask.decode().hard()
                category_id = 0 if instance.category_id is None else instance.category_id
                if instance.is_crowd or category_id < 0 or mask.area == 0:
                    what = "it is a crowd" if instance.is_crowd else f"its category is {category_id}"
                    what = what if mask.area else "its mask is empty"
                    remedy = "write another format, for YOLO has no such thing"
                    conversion.leave_out(image, instance, what, remedy)
                    continue
                ending = [] if instance.score is None else [repr(instance.score)]
                lines.append(" ".join([str(category_id), *_shares(mask), *ending]) + "\n")
            write_file(draft / f"{stem}.txt", "".join(lines).encode())
        if source.categories:
            write_class_names(draft / CLASSES_FILE, source.categories)
    return conversion.written()


def _named(stem: PurePosixPath) -> PurePosixPath:
    if f"{stem.name}.txt" == CLASSES_FILE:
        reason = f"its labels would be in {stem}.txt, which is for class names"
        raise InputError(reason, remedy="rename the image")
    return stem


def _is_image_name(line: str) -> bool:
    return PurePosixPath(line.strip()).suffix.lower() in SUFFIXES


def _numbers(text: str) -> NDArray[np.float64] | None:
    try:
        return np.array(text.split(), np.float64)
    except ValueError:
        return None


def _ends_in_id(text: str) -> bool:
    """Whether the last number of a line is a whole one that is no share, after others that may be shares."""
    *rest, last = text.rsplit(maxsplit=1)
    if not rest or not last.isdecimal() or not 2 <= float(last) < 1e18:
        return False
    numbers = _numbers(rest[0])
    return numbers is not None and len(numbers) > _FEWEST_NUMBERS and _beyond(numbers[1:]) <= _TOLERANCE


def _beyond(shares: NDArray[np.float64]) -> float:
    """How far the worst of some shares lies outside of [0, 1]."""
    return float(np.abs(shares - 0.5).max() - 0.5)


def _polygon(text: str, extra: int) -> NDArray[np.float64]:
    """The numbers of a line, checked; the last ``extra`` are no coordinates."""
    numbers = _numbers(text)
    if numbers is None:
        raise InputError("has something that is no number", remedy="write CLASS x1 y1 x2 y2 ...")
    if not np.isfinite(numbers).all() or not numbers[0].is_integer() or numbers[0] < 0:
        reason = f"has class {text.split()[0][:30]!r} or a number that is not finite"
        raise InputError(reason, remedy="correct the line")
    shares = numbers[1 : len(numbers) - extra]
    if len(shares) < _FEWEST_NUMBERS:
        what = "a box" if len(shares) == 4 else "no polygon"
        raise InputError(f"is {what}, not a mask", remedy="boxes alone cannot be refined")
    if _beyond(shares) > _TOLERANCE:
        worst = shares[np.abs(shares - 0.5).argmax()]
        reason = f"has the coordinate {worst:g}, but these are shares of the image's size"
        raise InputError(reason, remedy="divide x by the width and y by the height")
    return numbers


def _shares(mask: MaskWindow) -> list[str]:
    """The numbers of a line: the outline in shares of the image's size, as short as they can be without loss."""
    height, width = mask.image_size
    points = joined_outline(mask) / np.array((width, height), np.float64)
    # a hundredth of a pixel; the nearest pixel edge is then certain
    digits = len(str(max(height, width))) + 2
    return [f"{share:.{digits}f}".rstrip("0").rstrip(".") for share in points.ravel()]


YOLO_SEG = Format("yolo-seg", True, recognise, YoloSource, write, check=check_class_names)
