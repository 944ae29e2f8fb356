"""COCO run-length masks: checked before use, decoded inside their box, written as pycocotools writes them.

A run-length mask lists the lengths of alternating runs of background and foreground pixels, background first,
down the columns of the image, left to right. "Compressed" is a text form of that list: each run (from the
fourth on its difference to the run two before) in groups of five bits, lowest first, a sixth bit saying
that more follow, each group as the character of code 48 + value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from reprlib import Repr

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.types import InputError, MaskWindow

__all__ = ["MAX_PIXELS", "RleMask", "mask_from_segmentation"]

# 23,170 × 23,170; the longest run that pycocotools reads: a difference of two longer ones takes seven characters,
# and then it shifts its sign by more bits than an int has
MAX_PIXELS = (1 << 29) - 1
# pixels of polygon outline; pycocotools walks it in fifths of a pixel, about 120 bytes each
MAX_OUTLINE = 4_000_000
_LONGEST_SIDE = 1 << 27  # of an image that pycocotools draws polygons on, in ints of fifths of a pixel
_FAR = 1e300  # a number beyond it, even a whole one of JSON, is as good as infinite
_MERGED_AT_ONCE = 16  # polygons; COCO's own masks have fewer
_FIRST_CHARACTER = 48  # "0"
_QUOTE = Repr()  # the beginning of a value, however long or deeply nested it is
_QUOTE.maxlist = _QUOTE.maxdict = 8
_LONGEST_NUMBER = 6  # groups of five bits: 30 bits hold any difference of two runs up to MAX_PIXELS


@dataclass(frozen=True)
class RleMask:
    """A binary mask as COCO's compressed RLE; one that exists is sound.

    Runs of no pixels, but for the first, are joined to their neighbours: pycocotools takes two of them for the end
    of the masks when it compares two masks, and writes beyond its memory when it merges masks that have many.

    Attributes:
        size: (height, width) of the image, pixels.
        counts: the runs as pycocotools' text form.

    Raises:
        InputError: the size is not that of an image, or the runs are no numbers, negative, or do not add up
            to height × width (pycocotools would crash or read foreign memory on some of these).
    """

    size: tuple[int, int]
    counts: str

    def __post_init__(self) -> None:
        _check_size(self.size)
        runs = _runs_from_text(self.counts)
        _check_runs(runs, self.size)
        if (runs[1:] == 0).any():
            object.__setattr__(self, "counts", _text_from_runs(_without_empty_runs(runs)))

    @classmethod
    def from_runs(cls, runs: Sequence[int] | NDArray[np.int64], size: tuple[int, int]) -> RleMask:
        """A mask from uncompressed runs: background and foreground in turn, background first.

        Raises:
            InputError: as for the class.
        """
        _check_size(size)
        if not isinstance(runs, np.ndarray):
            for position, run in enumerate(runs):
                if type(run) is not int:
                    raise InputError(f"run {position} of the RLE is {_short(run)}, not a whole number")
                if not 0 <= run <= MAX_PIXELS:
                    raise InputError(
                        f"run {position} of the RLE is {_short(run)}, which is no number of pixels"
                    )
        lengths = np.asarray(runs, np.int64)
        _check_runs(lengths, size)
        return cls(size, _text_from_runs(lengths))

    @classmethod
    def from_window(cls, window: MaskWindow) -> RleMask:
        """The mask of a window (soft values count from 0.5 on), as pycocotools' ``encode`` gives it."""
        return cls(window.image_size, _text_from_runs(_runs_of_window(window)))

    @property
    def runs(self) -> NDArray[np.int64]:
        """[runs] lengths in pixels, background first."""
        return _runs_from_text(self.counts)

    @property
    def area(self) -> int:
        """Number of foreground pixels."""
        return int(self.runs[1::2].sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) of the foreground in pixels, x1 and y1 exclusive; all 0 where there is none."""
        return _box(self.runs, self.size[0])

    def decode(self) -> MaskWindow:
        """The mask inside its bounding box, bool; costs the columns of the box, not the image."""
        runs, (height, _) = self.runs, self.size
        x0, y0, x1, y1 = _box(runs, height)
        if x1 == x0:
            return MaskWindow(np.zeros((0, 0), bool), 0, 0, self.size)
        # cut the list of runs to the columns x0 ... x1, so that only these are ever pixels
        edges = np.clip(np.cumsum(runs), x0 * height, x1 * height)
        lengths = np.diff(edges, prepend=x0 * height)
        columns = np.repeat(np.arange(len(runs)) % 2 == 1, lengths).reshape(x1 - x0, height)
        return MaskWindow(np.ascontiguousarray(columns[:, y0:y1].T), x0, y0, self.size)


def mask_from_segmentation(segmentation: object, image_size: Callable[[], tuple[int, int]]) -> RleMask:
    """The mask of a COCO ``segmentation``: compressed RLE, uncompressed RLE or a list of polygons.

    Args:
        segmentation: the value as the JSON has it; counts may also be bytes, as pycocotools returns them.
        image_size: gives (height, width) of the image, pixels; asked only for polygons, which do not carry
            it.

    Raises:
        InputError: it is none of the three, or damaged.
    """
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if (
            not isinstance(size, (list, tuple))
            or len(size) != 2
            or any(type(side) is not int for side in size)
        ):
            raise InputError(f"the RLE's size is {_short(size)}, not [height, width] in pixels")
        if isinstance(counts, bytes):
            counts = counts.decode("latin-1")  # never fails; foreign characters are refused below
        if isinstance(counts, str):
            return RleMask((size[0], size[1]), counts)
        if isinstance(counts, (list, tuple)):
            return RleMask.from_runs(counts, (size[0], size[1]))
        raise InputError(f"the RLE's counts are {_short(counts)}, neither text nor a list of runs")
    if isinstance(segmentation, list):
        return _mask_from_polygons(segmentation, image_size())
    raise InputError(
        f"the segmentation is {_short(segmentation)}, neither an RLE nor a list of polygons",
        remedy="write masks into the file (boxes alone cannot be refined)",
    )


def _mask_from_polygons(polygons: list[object], size: tuple[int, int]) -> RleMask:
    _check_size(size)
    height, width = size
    if max(size) > _LONGEST_SIDE:
        raise InputError(f"the image is {height}×{width}, too long for polygons", remedy="write RLE masks")
    if not polygons:
        return RleMask.from_runs([height * width], size)
    outline = 0.0
    checked = []
    for position, polygon in enumerate(polygons):
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            # four numbers would be taken for a box by pycocotools
            raise InputError(
                f"polygon {position} is {_short(polygon)}, not a list x, y, x, y, ... of three or more points"
            )
        if any(type(number) not in (int, float) or not abs(number) < _FAR for number in polygon):
            raise InputError(f"polygon {position} has a coordinate that is not a finite number")
        points = np.asarray(polygon, np.float64).reshape(-1, 2)  # [points, xy]
        beyond = np.maximum(-points, points - (width, height))
        if (beyond > max(height, width)).any():
            x, y = points[int(beyond.max(1).argmax())]
            raise InputError(
                f"polygon {position} has the point ({x:g}, {y:g}), far outside its {width}×{height} image"
            )
        outline += float(np.abs(points - np.roll(points, 1, 0)).max(1).sum())
        checked.append(polygon)
    if outline > MAX_OUTLINE:
        raise InputError(
            f"the polygons' outline is {outline:.0f} pixels long, more than the {MAX_OUTLINE} allowed"
        )
    from pycocotools import mask as coco_mask  # here, because most files hold no polygons

    drawn = coco_mask.frPyObjects(checked, height, width)
    while len(drawn) > 1:  # a few at a time: one merge of all would walk the union anew for each polygon
        drawn = [
            coco_mask.merge(drawn[first : first + _MERGED_AT_ONCE])
            for first in range(0, len(drawn), _MERGED_AT_ONCE)
        ]
    return RleMask(size, drawn[0]["counts"].decode("ascii"))


def _check_size(size: tuple[int, int]) -> None:
    height, width = size
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise InputError(
            f"the mask's size is {_short(height)}×{_short(width)} (height × width), not that of an image"
        )


def _check_runs(runs: NDArray[np.int64], size: tuple[int, int]) -> None:
    if (runs < 0).any():
        raise InputError(f"run {int((runs < 0).argmax())} of the RLE is negative")
    height, width = size
    # run by run first: a sum of longer ones could come round to the right number in 64 bits
    if (runs > height * width).any() or int(runs.sum()) != height * width:
        raise InputError(
            f"the RLE's runs add up to {sum(runs.tolist())} pixels, but its size {height}×{width} has "
            f"{height * width}",
            remedy="check that size is [height, width] and that counts are complete",
        )


def _runs_from_text(counts: str) -> NDArray[np.int64]:
    if not counts:
        return np.zeros(0, np.int64)
    try:
        codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - _FIRST_CHARACTER
    except UnicodeEncodeError as error:
        raise InputError(
            f"the RLE's counts have {counts[error.start]!r} at character {error.start}"
        ) from None
    foreign = (codes < 0) | (codes > 63)
    if foreign.any():
        at = int(foreign.argmax())
        raise InputError(f"the RLE's counts have {counts[at]!r} at character {at}, which belongs to no RLE")
    if codes[-1] & 32:
        raise InputError(
            "the RLE's counts end in the middle of a number", remedy="check that the file is complete"
        )
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if int(lengths.max()) > _LONGEST_NUMBER:
        raise InputError("the RLE's counts have a run longer than any image")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs: NDArray[np.int64] = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(
        codes[ends] & 16, np.int64(1) << (5 * lengths), 0
    )  # the last group's top bit is the sign
    # from the fourth number on, each is the difference to the run two before
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _text_from_runs(runs: NDArray[np.int64]) -> str:
    rest = runs.copy()
    rest[3:] -= runs[1:-2]
    characters = np.zeros((len(rest), _LONGEST_NUMBER), np.uint8)  # [runs, groups]; 0 = no character
    unfinished = np.ones(len(rest), bool)
    for group in range(_LONGEST_NUMBER):
        low = rest & 31
        rest >>= 5
        more = np.where(low & 16, rest != -1, rest != 0)
        characters[unfinished, group] = (low + 32 * more + _FIRST_CHARACTER)[unfinished]
        unfinished &= more
    return bytes(characters[characters != 0]).decode("ascii")


def _runs_of_window(window: MaskWindow) -> NDArray[np.int64]:
    foreground = window.values if window.values.dtype == bool else window.values >= 0.5
    rows, columns = foreground.shape
    height, width = window.image_size
    framed = np.zeros((columns, rows + 2), np.int8)  # each column between two background pixels
    framed[:, 1:-1] = foreground.T
    steps = np.diff(framed, axis=1)
    start_column, start_row = np.nonzero(steps == 1)
    end_column, end_row = np.nonzero(steps == -1)
    starts = (window.x + start_column) * height + window.y + start_row
    ends = (window.x + end_column) * height + window.y + end_row
    return _runs_between(starts, ends, height * width)


def _without_empty_runs(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    ends = np.cumsum(runs)
    foreground = (np.arange(len(runs)) % 2 == 1) & (runs > 0)
    return _runs_between((ends - runs)[foreground], ends[foreground], int(ends[-1]))


def _runs_between(starts: NDArray[np.int64], ends: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Runs from where stretches of foreground start and end; those that touch become one."""
    # a run at the bottom of a column goes on at the top of the next one
    apart = starts[1:] != ends[:-1]
    starts = starts[np.concatenate((np.ones(min(len(starts), 1), bool), apart))]
    ends = ends[np.concatenate((apart, np.ones(min(len(ends), 1), bool)))]
    edges = np.stack((starts, ends), 1).ravel()
    runs = np.diff(edges, prepend=0, append=total)
    return runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs


def _box(runs: NDArray[np.int64], height: int) -> tuple[int, int, int, int]:
    ends = np.cumsum(runs)
    foreground = (np.arange(len(runs)) % 2 == 1) & (runs > 0)
    if not foreground.any():
        return 0, 0, 0, 0
    first, last = (ends - runs)[foreground], ends[foreground] - 1  # first and last pixel of each run
    x0, x1 = int(first[0]) // height, int(last[-1]) // height + 1
    if (first // height != last // height).any():
        return (
            x0,
            0,
            x1,
            height,
        )  # a run over the end of a column touches its last row and the next one's first
    return x0, int((first % height).min()), x1, int((last % height).max()) + 1


def _short(value: object) -> str:
    if value is None:
        return "missing"
    if isinstance(value, int) and value.bit_length() > 10_000:
        return f"a number of {value.bit_length()} bits"  # Python refuses to write it out
    text = _QUOTE.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
