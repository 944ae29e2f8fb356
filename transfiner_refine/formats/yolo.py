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
from transfiner_refine.formats.folders import FolderEntry, FolderSource, ImageTree, first_files, write_file
from transfiner_refine.formats.polygons import fill_contour, fill_polygons, is_pixel_contour, joined_outline
from transfiner_refine.formats.records import Format, Instance, OpenOptions, RecordFault, Source, Written
from transfiner_refine.formats.text_lines import first_lines
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.images import SUFFIXES
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.output import atomic_folder

__all__ = ["YOLO_SEG", "SharesMask", "YoloSource"]

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
        """The mask inside its bounding box, bool.

        Raises:
            InputError: the polygon is longer than any outline.
        """
        points = self.shares * self.size[::-1]
        return (
            fill_contour(points, self.size)
            if is_pixel_contour(points)
            else fill_polygons([points], self.size)
        )


class YoloSource(FolderSource):
    """The label files of a folder and its subfolders."""

    def __init__(self, folder: Path, options: OpenOptions) -> None:
        """Reads the label files.

        Raises:
            InputError: no images given, no such folder, no label file in it, or no image that can be used.
        """
        super().__init__(folder, options.images)
        names = [name for name in self.files if name.suffix.lower() == ".txt" and name.name != CLASSES_FILE]
        if not names:
            raise InputError("holds no label files", file=folder, remedy="give a folder of STEM.txt")
        if options.images is None:
            raise InputError(
                "holds shares of image sizes, so it cannot be read without the images",
                file=folder,
                remedy="give their folder with --images",
            )
        own_names = folder / CLASSES_FILE
        chosen = options.class_names or (own_names if own_names.is_file() else None)
        self._names = {} if chosen is None else read_class_names(chosen)
        self._lines: list[list[tuple[int, str]]] = []  # for each entry: number from 1, and text
        entries = []
        for name in names:
            stem = (name.relative_to(_LABELS) if _LABELS in name.parents else name).with_suffix("")
            lines, error = list[tuple[int, str]](), None
            try:
                lines = [(at, text) for at, text in enumerate(self._texts(name), 1) if text.strip()]
            except InputError as unreadable:
                error = unreadable
            if lines and _is_image_name(lines[0][1]):  # a list of images, as exports have it for each split
                continue
            self._lines.append(lines)
            entries.append(FolderEntry(name, stem, 1 if error else len(lines), error=error))
        self.entries = tuple(entries)
        self._with_ids = {
            len(fields) % 2
            for lines in self._lines
            for fields in (text.split() for _, text in lines)
            if _ends_in_id(fields)
        }
        self.find_images(ImageTree(options.images))

    @property
    def categories(self) -> Mapping[int, str]:
        return self._names

    def instances_of(
        self, position: int, size: Callable[[], tuple[int, int]]
    ) -> Iterator[Instance | RecordFault]:
        name, lines = self.entries[position].name, self._lines[position]
        image_size = size() if lines else (0, 0)
        for index, (number, text) in enumerate(lines):
            try:
                category_id, shares, score = _parsed(text, self._extra(text), self._with_ids)
            except InputError as error:
                yield RecordFault(error.at(self.folder / name, f"line {number}"))
            else:
                mask = SharesMask(shares, image_size)
                yield Instance(index, mask, f"{name} line {number}", category_id, score)

    def stated_size(self, position: int) -> tuple[int, int] | None:  # noqa: ARG002  the image alone knows
        return None

    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        name = self.entries[position].name
        lines = self.read(name).decode().split("\n")
        for index, mask in masks.items():
            number, text = self._lines[position][index]
            fields = text.split()
            ending = fields[len(fields) - self._extra(text) :]
            mark = "\ufeff" if lines[number - 1].startswith("\ufeff") else ""
            end = "\r" if lines[number - 1].endswith("\r") else ""
            lines[number - 1] = mark + " ".join([fields[0], *_shares(mask.decode()), *ending]) + end
        write_file(draft / name, "\n".join(lines).encode())
        return Written()

    def _texts(self, name: PurePosixPath) -> list[str]:
        try:
            return self.read(name).decode("utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise InputError(
                "is no text in UTF-8", file=self.folder / name, remedy="replace the file"
            ) from None

    def _extra(self, text: str) -> int:
        """How many numbers come after the polygon of a line."""
        is_odd = len(text.split()) % 2 == 0  # the class is not counted
        return 1 if is_odd else 2 if 1 in self._with_ids else 0


def recognise(path: Path) -> bool:
    """A folder of text files; most of their first lines are a class and numbers, and some are polygons."""
    files = [file for file in first_files(path, ".txt") if file.name != CLASSES_FILE]
    lines = [line.split() for file in files for line in first_lines(file) if not _is_image_name(line)]
    polygons, boxes = sum(map(_is_polygon, lines)), sum(map(_is_box, lines))
    return polygons > 0 and 2 * (polygons + boxes) > len(lines)


def write(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a label file an image, and ``classes.txt`` where the source names its categories.

    Raises:
        OutputError: the disk refused.
    """
    conversion = Conversion(source, results, _named)
    with atomic_folder(output) as draft:
        for stem, _, image in conversion:
            lines = []
            for instance in image.instances:
                mask = instance.mask.decode().hard()
                category_id = 0 if instance.category_id is None else instance.category_id
                if instance.is_crowd or category_id < 0 or mask.area == 0:
                    what = "it is a crowd" if instance.is_crowd else f"its category is {category_id}"
                    what = what if mask.area else "its mask is empty"
                    conversion.leave_out(
                        image, instance, what, "write another format, for YOLO has no such thing"
                    )
                    continue
                ending = [] if instance.score is None else [repr(instance.score)]
                lines.append(" ".join([str(category_id), *_shares(mask), *ending]) + "\n")
            write_file(draft / f"{stem}.txt", "".join(lines).encode())
        if source.categories:
            write_class_names(draft / CLASSES_FILE, source.categories)
    return conversion.written()


def _named(stem: PurePosixPath) -> PurePosixPath:
    if f"{stem.name}.txt" == CLASSES_FILE:
        raise InputError(
            f"its labels would be in {stem}.txt, which is for class names", remedy="rename the image"
        )
    return stem


def _is_image_name(line: str) -> bool:
    return PurePosixPath(line.strip()).suffix.lower() in SUFFIXES


def _is_polygon(fields: list[str]) -> bool:
    return len(fields) > _FEWEST_NUMBERS and _are_shares(fields[: 1 + _FEWEST_NUMBERS])


def _is_box(fields: list[str]) -> bool:
    return len(fields) in (5, 6) and _are_shares(fields[:5])


def _are_shares(fields: list[str]) -> bool:
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        return False
    return numbers[0].is_integer() and max(map(abs, numbers[1:])) < 2


def _ends_in_id(fields: list[str]) -> bool:
    """Whether the last number of a line is a whole one that is no share, after others that may be shares."""
    if not fields[-1].isdecimal() or len(fields[-1]) > 18 or int(fields[-1]) < 2:
        return False
    try:
        numbers = np.array(fields[1:-1], np.float64)
    except ValueError:
        return False
    return len(numbers) > _FEWEST_NUMBERS - 1 and bool((np.abs(numbers - 0.5) <= 0.5 + _TOLERANCE).all())


def _parsed(text: str, extra: int, with_ids: set[int]) -> tuple[int, NDArray[np.float64], float | None]:
    """Class, [points, xy] and confidence of a line."""
    fields = text.split()
    try:
        numbers = np.array(fields, np.float64)
    except ValueError:
        raise InputError("has something that is no number", remedy="write CLASS x1 y1 x2 y2 ...") from None
    if not np.isfinite(numbers).all() or not numbers[0].is_integer() or numbers[0] < 0:
        raise InputError(
            f"has class {fields[0][:30]!r} or a number that is not finite", remedy="correct the line"
        )
    shares, ending = np.split(numbers[1:], [len(numbers) - 1 - extra])
    if len(shares) < _FEWEST_NUMBERS:
        what = "a box" if len(shares) == 4 else "no polygon"
        raise InputError(f"is {what}, not a mask", remedy="boxes alone cannot be refined")
    if shares.min() < -_TOLERANCE or shares.max() > 1 + _TOLERANCE:
        worst = max(shares, key=lambda share: abs(share - 0.5))
        raise InputError(
            f"has the coordinate {worst:g}, but these are shares of the image's size",
            remedy="divide x by the width and y by the height",
        )
    has_score = extra == 2 or (extra == 1 and 0 not in with_ids)
    return int(numbers[0]), shares.reshape(-1, 2), float(ending[0]) if has_score else None


def _shares(mask: MaskWindow) -> list[str]:
    """The numbers of a line: the outline in shares of the image's size, as short as they can be without loss."""
    height, width = mask.image_size
    points = joined_outline(mask) / np.array((width, height), np.float64)
    # a hundredth of a pixel; the nearest pixel edge is then certain
    digits = len(str(max(height, width))) + 2
    return [f"{share:.{digits}f}".rstrip("0").rstrip(".") for share in points.ravel()]


YOLO_SEG = Format(
    "yolo-seg",
    "YOLO segmentation (txt)",
    True,
    recognise,
    YoloSource,
    write,
    check=lambda source: check_class_names(source.categories),
)
