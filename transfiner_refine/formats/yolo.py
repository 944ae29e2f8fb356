"""YOLO segmentation: a text file for each photo, a line for each instance, in shares of the photo's size.

    labels/train/street.txt                lines "CLASS x1 y1 x2 y2 ... [CONFIDENCE]"
    images/train/street.jpg

An odd number of numbers after the class means that the last one is a confidence. Sizes come from the photos (upright,
as ultralytics takes them), so these are needed. Polygons are read by the rule of ``polygons.py``: pixel centres,
and to the pixel where OpenCV's contours were written down in the photo's own resolution.

A line holds one polygon and no hole. Masks of several parts or with holes are written as one polygon whose pieces hang
together by bridges without width (``polygons.joined_outline``). This package reads the same pixels again, and
so does ultralytics, but for what it paints along bridges from part to part and where pixels touch at a corner.

Refined lines keep class and confidence as they were written; all other lines and files stay byte for byte. Written from
other formats, the category id is the class (0 where there is none), and names go to ``classes.txt``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.class_names import read_class_names, write_class_names
from transfiner_refine.formats.folders import FolderEntry, FolderSource, ImageTree, first_files
from transfiner_refine.formats.polygons import fill_contour, fill_polygons, is_pixel_contour, joined_outline
from transfiner_refine.formats.records import Format, Instance, OpenOptions, RecordFault, Source, Written
from transfiner_refine.formats.text_lines import first_lines, read_lines
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.output import atomic_folder

__all__ = ["YOLO_SEG", "SharesMask", "YoloSource"]

CLASSES_FILE = "classes.txt"
_FEWEST_NUMBERS = 6  # three points
_TOLERANCE = 0.01  # how far beyond the photo a share may lie; as ultralytics


@dataclass(frozen=True)
class SharesMask:
    """A polygon in shares of the photo's size.

    Attributes:
        shares: [points, xy] in [0, 1].
        size: (height, width) of the photo, pixels.
    """

    shares: NDArray[np.float64]
    size: tuple[int, int]

    def decode(self) -> MaskWindow:
        """The mask inside its bounding box, bool.

        Raises:
            InputError: the polygon is longer than any outline.
        """
        height, width = self.size
        points = self.shares * (width, height)
        filled = fill_contour if is_pixel_contour(points) else _fill
        return filled(points, self.size)


@dataclass(frozen=True)
class _Line:
    """One line of a text file.

    Attributes:
        number: counted from 1.
        category_id: the class.
        shares: [points, xy].
        score: confidence, None where the line has none.
        error: why it cannot be used.
    """

    number: int
    category_id: int = 0
    shares: NDArray[np.float64] | None = None
    score: float | None = None
    error: InputError | None = None


class YoloSource(FolderSource):
    """The label files of a folder and its subfolders."""

    def __init__(self, folder: Path, images: Path | None, class_names: Path | None = None) -> None:
        """Reads the label files.

        Args:
            folder: the folder of the label files.
            images: the folder of the photos. Without it, iterating gives faults, for sizes are not known.
            class_names: a text file of names; ``classes.txt`` in the folder otherwise, if there is one.

        Raises:
            InputError: no such folder, no label file in it, or no image that can be used.
        """
        super().__init__(folder, images)
        names = [name for name in self.files if name.suffix.lower() == ".txt" and name.name != CLASSES_FILE]
        if not names:
            raise InputError("holds no label files", file=folder, remedy="give a folder of STEM.txt")
        if images is None:
            raise InputError(
                "holds shares of photo sizes, so it cannot be read without the photos",
                file=folder,
                remedy="give their folder with --images",
            )
        own_names = folder / CLASSES_FILE
        chosen = class_names or (own_names if own_names.is_file() else None)
        self._names = {} if chosen is None else read_class_names(chosen)
        self._lines: list[list[_Line]] = []
        found = []
        for name in names:
            stem, error, lines = name.with_suffix(""), None, list[_Line]()
            try:
                lines = [
                    _parsed(folder / name, *line) for line in read_lines(folder / name) if line[1].strip()
                ]
            except InputError as unreadable:
                error = unreadable
            self._lines.append(lines)
            found.append(FolderEntry(name, stem, 1 if error else len(lines), error=error))
        self.entries = tuple(found)
        self.find_images(ImageTree(images))

    @property
    def categories(self) -> Mapping[int, str]:
        return self._names

    def instances_of(
        self, position: int, size: Callable[[], tuple[int, int]]
    ) -> Iterator[Instance | RecordFault]:
        lines = self._lines[position]
        photo = size() if lines else (0, 0)
        for index, line in enumerate(lines):
            if line.error is not None or line.shares is None:
                assert line.error is not None
                yield RecordFault(line.error)
            else:
                label = f"{self.entries[position].name} line {line.number}"
                yield Instance(index, SharesMask(line.shares, photo), label, line.category_id, line.score)

    def stated_size(self, position: int) -> tuple[int, int] | None:  # noqa: ARG002  the photo alone knows
        return None

    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        name = self.entries[position].name
        texts = (self.folder / name).read_bytes().decode("utf-8").split("\n")
        for index, mask in masks.items():
            line = self._lines[position][index]
            at = line.number - 1
            fields = texts[at].removeprefix("\ufeff").split()
            ending = [] if line.score is None else [fields[-1]]
            texts[at] = " ".join([fields[0], *_shares(mask.decode()), *ending]) + (
                "\r" if texts[at].endswith("\r") else ""
            )
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        (draft / name).write_bytes("\n".join(texts).encode())
        return Written()


def recognise(path: Path) -> bool:
    """A folder of text files whose lines are a class and six numbers or more."""
    files = [file for file in first_files(path, ".txt") if file.name != CLASSES_FILE]
    lines = [line for file in files for line in first_lines(file)[:1]]
    return bool(lines) and all(_looks_right(line) for line in lines)


def open_yolo(path: Path, options: OpenOptions) -> YoloSource:
    """Reads label files.

    Raises:
        InputError: no photos, no such folder, no label file in it, or no image that can be used.
    """
    return YoloSource(path, options.images, options.class_names)


def write(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a label file an image, and ``classes.txt`` where the source names its categories.

    Raises:
        OutputError: the disk refused.
    """
    conversion = Conversion(source, results)
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
            target = draft / f"{stem}.txt"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("".join(lines), encoding="utf-8")
        if source.categories:
            write_class_names(draft / CLASSES_FILE, source.categories)
    return conversion.written()


def _looks_right(line: str) -> bool:
    fields = line.split()[: 1 + _FEWEST_NUMBERS]
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        return False
    return len(numbers) == 1 + _FEWEST_NUMBERS and numbers[0].is_integer() and max(map(abs, numbers[1:])) < 2


def _parsed(path: Path, number: int, text: str) -> _Line:
    try:
        return _polygon(number, text)
    except InputError as error:
        blamed = InputError(error.reason, file=path, record=f"line {number}", remedy=error.remedy)
        return _Line(number, error=blamed)


def _polygon(number: int, text: str) -> _Line:
    fields = text.split()
    try:
        numbers = np.array(fields, np.float64)
    except ValueError:
        raise InputError("has something that is no number", remedy="write CLASS x1 y1 x2 y2 ...") from None
    if not np.isfinite(numbers).all() or not numbers[0].is_integer() or numbers[0] < 0:
        raise InputError(
            f"has class {fields[0][:30]!r} or a number that is not finite", remedy="correct the line"
        )
    shares, score = numbers[1:], None
    if len(shares) % 2:
        shares, score = shares[:-1], float(shares[-1])
    if len(shares) < _FEWEST_NUMBERS:
        what = "a box" if len(shares) == 4 else "no polygon"
        raise InputError(f"is {what}, not a mask", remedy="boxes alone cannot be refined")
    if shares.min() < -_TOLERANCE or shares.max() > 1 + _TOLERANCE:
        worst = max(shares, key=lambda share: abs(share - 0.5))
        raise InputError(
            f"has the coordinate {worst:g}, but these are shares of the photo's size",
            remedy="divide x by the width and y by the height",
        )
    return _Line(number, int(numbers[0]), shares.reshape(-1, 2), score)


def _shares(mask: MaskWindow) -> list[str]:
    """The numbers of a line: the outline in shares of the image's size, as short as they can be without loss."""
    height, width = mask.image_size
    points = joined_outline(mask) / np.array((width, height), np.float64)
    digits = (
        len(str(max(height, width))) + 2
    )  # a hundredth of a pixel; the nearest pixel edge is then certain
    return [f"{share:.{digits}f}".rstrip("0").rstrip(".") for share in points.ravel()]


def _fill(points: NDArray[np.float64], size: tuple[int, int]) -> MaskWindow:
    return fill_polygons([points], size)


YOLO_SEG = Format("yolo-seg", "YOLO segmentation (txt)", True, recognise, open_yolo, write)
