"""YOLO segmentation: a text file for each image, a line for each instance, in shares of the image's size.

    labels/train/street.txt                lines "CLASS x1 y1 x2 y2 ... [CONFIDENCE] [TRACK_ID]"
    images/train/street.jpg
    data.yaml                              class names; or classes.txt

Give the folder of the text files, or the one that has it as ``labels``. What comes after a polygon is told by all lines
of the folder together, for an export writes the same columns everywhere (``_Columns``). Sizes come from the images
(upright, as ultralytics takes them), so these are needed. Polygons are read by the rule of ``polygons.py``: pixel
centres, and to the pixel where OpenCV's contours were written down in the image's own resolution.

A line holds one polygon and no hole. Masks of several parts or with holes are written as one polygon whose pieces hang
together by bridges without width (``polygons.joined``). This package reads the same pixels again, and so does
ultralytics, but for what it paints along bridges from part to part and where pixels touch at a corner.

Refined lines keep class, confidence and track id as they were written; all other lines and files stay byte for byte.
Written from other formats, classes are numbered from 0 in the order of the category ids, and names go to
``classes.txt`` and ``data.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.class_names import (
    CLASSES_FILE,
    DATA_FILE,
    check_class_names,
    read_class_names,
    write_class_names,
)
from transfiner_refine.formats.folders import (
    FolderEntry,
    FolderSource,
    first_files,
    first_lines,
    start_of,
    write_file,
)
from transfiner_refine.formats.polygons import (
    Part,
    fill_contour,
    fill_polygons,
    is_pixel_contour,
    joined,
    polygons_of,
)
from transfiner_refine.formats.records import (
    Format,
    ImageRecord,
    Instance,
    OpenOptions,
    RecordFault,
    Source,
    Written,
)
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.image_folders import ImageTree
from transfiner_refine.images import SUFFIXES
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.output import atomic_folder

_LABELS = PurePosixPath("labels")
_FEWEST_NUMBERS = 6  # three points
_DENSE = 16  # points of a line from which on it is a traced contour, whose steps are short
_JUMP = 4  # times the longest step of a contour: what lies farther off is no point of it
_NAMED = 8  # classes that a note names
_NEAR = 0.1  # share of the image between neighbours of a polygon of many points, at most
_BOX = 5  # columns of a class and a box, with which lines of poses begin
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
        super().__init__(folder, options)
        if options.images is None:
            reason = "holds shares of image sizes, so it cannot be read without the images"
            raise InputError(reason, file=folder, remedy="give their folder with --images")
        own = [folder / CLASSES_FILE, folder / DATA_FILE, folder.absolute().parent / DATA_FILE]
        own = own[: 3 if folder.absolute().name == _LABELS.name else 2]
        chosen = options.class_names or next((path for path in own if path.is_file()), None)
        self.categories = {} if chosen is None else read_class_names(chosen)
        self._lines: dict[PurePosixPath, list[tuple[int, str]]] = {}  # of each file: number from 1, and text
        names = [name for name in self.files if name.suffix.lower() == ".txt" and name.name != CLASSES_FILE]
        self.parse_entries(names, self._entry)
        if not self.entries:
            raise InputError("holds no label files", file=folder, remedy="give a folder of STEM.txt")
        lines = [[text.split() for _, text in found] for found in self._lines.values()]
        self._columns = _Columns(
            lines, are_poses=any(b"kpt_shape:" in start_of(path, 1 << 16) for path in own)
        )
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
            try:
                numbers, score, track_id = self._columns.read(text)
            except InputError as error:
                yield RecordFault(error.at(self.folder / name, f"line {number}"))
                continue
            mask = SharesMask(numbers[1:].reshape(-1, 2), image_size)
            label = f"{name} line {number}"
            yield Instance(index, mask, label, int(numbers[0]), score, instance_id=track_id)

    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        name = self.entries[position].name
        lines = self.text(name).split("\n")
        for index, mask in masks.items():
            number, text = self._lines[name][index]
            fields = text.split()
            ending = fields[len(fields) - self._columns.extra(fields) :]
            end = "\r" if lines[number - 1].endswith("\r") else ""
            polygon = _shares(mask.decode(), self.options.polygon_tolerance)
            lines[number - 1] = " ".join([fields[0], *polygon, *ending]) + end
        self.write_text(name, "\n".join(lines), draft)
        return Written()


class _Columns:
    """What comes after the polygons of a folder: nothing, a confidence, a track id, or both.

    Coordinates come in pairs, so that lines of an odd number of numbers after the class have one more, those of an even
    number none or two. All lines of either kind are looked at together: a track id is a whole number, in each line, and
    another one in each line of a file; where ids of 0 and 1 alone could be points at the image's border, the last point
    is none if it lies far off the contour.
    """

    def __init__(self, files: Sequence[Sequence[Sequence[str]]], *, are_poses: bool) -> None:
        self._are_poses = are_poses or _are_poses([fields for lines in files for fields in lines])
        self._end_in_ids = [  # lines of an even number of numbers, and of an odd one
            _end_in_ids([[fields for fields in lines if len(fields) % 2 != odd] for lines in files], odd)
            for odd in (0, 1)
        ]

    def extra(self, fields: Sequence[str]) -> int:
        """How many numbers come after the polygon of a line."""
        return 1 if len(fields) % 2 == 0 else 2 * self._end_in_ids[0]

    def read(self, text: str) -> tuple[NDArray[np.float64], float | None, int | None]:
        """Class and coordinates of a line, its confidence and its track id; raises InputError where it is no mask."""
        fields = text.split()
        if self._are_poses:
            reason = "is a box and key points of a pose, not a mask"
            raise InputError(reason, remedy="poses cannot be refined")
        extra = self.extra(fields)
        numbers = _polygon(fields, extra)
        has_id = self._end_in_ids[len(fields) % 2 == 0]
        score = float(fields[-extra]) if extra == 2 or (extra == 1 and not has_id) else None
        return numbers, score, int(fields[-1]) if has_id and _is_id(fields[-1]) else None


def recognise(path: Path) -> bool:
    """A folder of text files; most of their first lines are a class and numbers, and some are polygons."""
    files = [file for file in first_files(path, ".txt") if file.name != CLASSES_FILE]
    lines = [line.split() for file in files for line in first_lines(file) if not _is_image_name(line)]
    found = [numbers for numbers in map(_numbers, lines) if numbers is not None and len(numbers) > 4]
    right = [len(each) > 6 for each in found if each[0].is_integer() and np.abs(each[1:5]).max() < 2]
    return any(right) and 2 * len(right) > len(lines)


def write(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a label file an image, and ``classes.txt`` where the source names its categories."""
    conversion = Conversion(source, results, _named, ending=".txt")
    classes = _classes(source)
    numbers = {category_id: number for number, category_id in enumerate(classes)}
    with atomic_folder(output) as draft:
        for stem, _, image in conversion:
            lines = []
            for instance in image.instances:
                mask = instance.mask.decode().hard()
                if instance.is_crowd or mask.area == 0:
                    what = "it is a crowd (see --refine-crowds)" if mask.area else "its mask is empty"
                    remedy = "write another format, for YOLO has no such thing"
                    conversion.leave_out(image, instance, what, remedy)
                    continue
                number = numbers[instance.category_id]
                ending = [] if instance.score is None else [repr(instance.score)]
                lines.append(" ".join([str(number), *_shares(mask, conversion.tolerance), *ending]) + "\n")
            write_file(draft / f"{stem}.txt", "".join(lines).encode())
        write_class_names(draft, list(classes.values()))
    moved = [
        f"{old} -> {new} {name}" for new, (old, name) in enumerate(classes.items()) if old not in (new, None)
    ]
    more = f" and {len(moved) - _NAMED} more" if len(moved) > _NAMED else ""
    note = (
        f"Classes numbered from 0, as YOLO has them: {', '.join(moved[:_NAMED])}{more}; names in {DATA_FILE}."
    )
    return replace(conversion.written(), notes=(note,) if moved else ())


def _classes(source: Source) -> dict[int | None, str]:
    """Names by category id, in the order of the classes: those the source names, and those that its instances have."""
    used = {each.category_id for item in source if isinstance(item, ImageRecord) for each in item.instances}
    names = {number: f"class {number}" for number in used if number is not None} | {**source.categories}
    found: dict[int | None, str] = {number: names[number] for number in sorted(names)}
    return found | ({None: "object"} if None in used else {})


def _named(stem: PurePosixPath) -> PurePosixPath:
    if f"{stem.name}.txt" == CLASSES_FILE:
        reason = f"its labels would be in {stem}.txt, which is for class names"
        raise InputError(reason, remedy="rename the image")
    return stem


def _is_image_name(line: str) -> bool:
    return PurePosixPath(line.strip()).suffix.lower() in SUFFIXES


def _numbers(fields: Sequence[str]) -> NDArray[np.float64] | None:
    try:
        return np.array(fields, np.float64)
    except ValueError:
        return None


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _end_in_ids(files: Sequence[Sequence[Sequence[str]]], odd: int) -> bool:
    """Whether lines of ``odd`` or of an even number of numbers after the class end in a track id."""
    found, apart, jumps = 0, True, True
    for lines in files:
        ids = []
        for fields in lines:
            numbers = _numbers(fields)
            points = None if numbers is None else numbers[1 : len(numbers) - (1 if odd else 2)]
            if points is None or len(points) < _FEWEST_NUMBERS or _beyond(points) > _TOLERANCE:
                continue
            if not _is_id(fields[-1]) or not (odd or 0 <= float(fields[-2]) <= 1):
                apart = False
                continue
            if int(fields[-1]) > 1:
                return True  # neither a share nor a confidence
            ids.append(int(fields[-1]))
            jumps = jumps and (bool(odd) or _is_far(points.reshape(-1, 2), np.array(fields[-2:], np.float64)))
        found += len(ids)
        apart = apart and len(ids) == len({*ids})
    return found > 0 and apart and jumps


def _is_far(points: NDArray[np.float64], last: NDArray[np.float64]) -> bool:
    """Whether a point is none of the traced contour before it."""
    steps = np.abs(np.diff(points, axis=0)).max(axis=1)
    off = np.abs(points[[0, -1]] - last).max(axis=1).min()
    return len(points) >= _DENSE and bool(off > _JUMP * steps.max())


def _are_poses(lines: Sequence[Sequence[str]]) -> bool:
    """Whether lines are poses: a class and a box, then key points in it, each x, y and visibility or confidence."""
    found = [numbers for numbers in map(_numbers, lines) if numbers is not None and len(numbers) >= _BOX + 6]
    if len({len(numbers) for numbers in found}) != 1:
        return False
    rows = np.stack(found)
    points = rows[:, _BOX : _BOX + (rows.shape[1] - _BOX) // 3 * 3].reshape(len(rows), -1, 3)
    boxes = rows[:, 1:_BOX].reshape(-1, 1, 2, 2)  # [rows, 1, centre and size, xy]
    inside = np.abs(points[..., :2] - boxes[:, :, 0]) <= boxes[:, :, 1] / 2 + _TOLERANCE
    if not (inside | (points[..., :2] == 0)).all():  # a point that is not there is at 0, 0
        return False
    if np.isin(points[..., 2], (0, 1, 2)).all():
        return True
    # polygons of one length, near the middle of their images, are no poses: their first points are neighbours
    apart = np.abs(boxes[:, 0, 0] - boxes[:, 0, 1]).max(axis=1) > _NEAR
    return len(rows) > 1 and points.shape[1] > 3 and bool(apart.any())


def _beyond(shares: NDArray[np.float64]) -> float:
    """How far the worst of some shares lies outside of [0, 1]."""
    return float(np.abs(shares - 0.5).max() - 0.5)


def _polygon(fields: Sequence[str], extra: int) -> NDArray[np.float64]:
    """Class and coordinates of a line, checked; the last ``extra`` are neither."""
    numbers = _numbers(fields)
    if numbers is None:
        raise InputError("has something that is no number", remedy="write CLASS x1 y1 x2 y2 ...")
    if not np.isfinite(numbers).all() or not numbers[0].is_integer() or numbers[0] < 0:
        reason = f"has class {fields[0][:30]!r} or a number that is not finite"
        raise InputError(reason, remedy="correct the line")
    shares = numbers[1 : len(numbers) - extra]
    if len(shares) < _FEWEST_NUMBERS:
        what = "a box" if len(shares) == 4 else "no polygon"
        raise InputError(f"is {what}, not a mask", remedy="boxes alone cannot be refined")
    if _beyond(shares) > _TOLERANCE:
        worst = shares[np.abs(shares - 0.5).argmax()]
        reason = f"has the coordinate {worst:g}, but these are shares of the image's size"
        raise InputError(reason, remedy="divide x by the width and y by the height")
    return numbers[: len(numbers) - extra]


def _shares(mask: MaskWindow, tolerance: float) -> list[str]:
    """The numbers of a line: the outline in shares of the image's size, as short as they can be without loss."""
    height, width = mask.image_size
    # a hundredth of a pixel; the nearest pixel edge is then certain
    digits = len(str(max(height, width))) + 2

    def shares(parts: list[Part]) -> list[str]:
        points = joined([ring for part in parts for ring in part]) / np.array((width, height), np.float64)
        return [f"{share:.{digits}f}".rstrip("0").rstrip(".") for share in points.ravel()]

    def read(parts: list[Part]) -> MaskWindow:
        return SharesMask(np.array(shares(parts), np.float64).reshape(-1, 2), mask.size).decode()

    return shares(polygons_of(mask, tolerance, read))


YOLO_SEG = Format("yolo-seg", True, recognise, YoloSource, write, check=check_class_names)
