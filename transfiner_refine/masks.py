"""COCO run-length masks: checked before use, decoded inside their box, written as pycocotools writes them.

A run-length mask lists the lengths of alternating runs of background and foreground pixels, background first,
down the columns of the image, left to right. "Compressed" is a text form of that list: each run (from the
fourth on its difference to the run two before) in groups of five bits, lowest first, a sixth bit saying
that more follow, each group as the character of code 48 + value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError, short

# 23,170 × 23,170; the longest run that pycocotools reads: a difference of two longer ones takes seven characters,
# and then it shifts its sign by more bits than an int has
MAX_PIXELS = (1 << 29) - 1
Box: TypeAlias = tuple[int, int, int, int]
_FIRST_CHARACTER = 48  # "0"
_LONGEST_NUMBER = 6  # groups of five bits: 30 bits hold any difference of two runs up to MAX_PIXELS


@dataclass(frozen=True)
class MaskWindow:
    """A mask (or a probability map) of one instance inside a rectangular window of its image; outside it is zero."""

    values: NDArray[Any]  # [h, w] bool, or float32 probabilities in [0, 1]
    x: int  # column of the window's left edge in the image, pixels
    y: int  # row of its top edge
    image_size: tuple[int, int]  # (height, width), pixels

    @property
    def size(self) -> tuple[int, int]:
        """``image_size``; with ``decode``, a window can stand where an encoded mask can."""
        return self.image_size

    def decode(self) -> MaskWindow:
        """The window itself."""
        return self

    def paste(self) -> NDArray[Any]:
        """The mask at full image size: [H, W], the dtype of ``values``."""
        full = np.zeros(self.image_size, self.values.dtype)
        self.of(full)[...] = self.values
        return full

    @property
    def foreground(self) -> NDArray[np.bool_]:
        """[h, w] bool: the values, cut at 0.5 where they are soft. No other place cuts masks of files."""
        return self.values if self.values.dtype == bool else self.values >= 0.5

    def hard(self) -> MaskWindow:
        """The mask cut at 0.5, bool."""
        return self if self.values.dtype == bool else replace(self, values=self.foreground).tight()

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """The part of an [H, W, ...] array of the image that lies in the window; a view."""
        h, w = self.values.shape
        return array[self.y : self.y + h, self.x : self.x + w]

    def tight(self) -> MaskWindow:
        """The same mask with the window shrunk to its foreground (values ≥ 0.5); 0×0 if there is none."""
        foreground = self.foreground
        rows, columns = np.flatnonzero(foreground.any(1)), np.flatnonzero(foreground.any(0))
        if len(rows) == 0:
            return MaskWindow(self.values[:0, :0], self.x, self.y, self.image_size)
        y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        return MaskWindow(self.values[y0:y1, x0:x1], self.x + x0, self.y + y0, self.image_size)

    def resized(self, size: tuple[int, int]) -> MaskWindow:
        """The mask stretched over an image of another (height, width): bilinear, cut at 0.5; bool."""
        soft, starts = self.values.astype(np.float32), []
        for axis, start in enumerate((self.y, self.x)):
            scale = size[axis] / self.image_size[axis]
            first = max(0, int((start - 0.5) * scale))
            last = min(size[axis], int((start + soft.shape[axis] + 0.5) * scale) + 1)
            at = (np.arange(first, last) + 0.5) / scale + 0.5 - start  # of centres, in the framed values
            low = np.clip(at.astype(np.int64), 0, soft.shape[axis])
            share = np.clip(at - low, 0, 1, dtype=np.float32)
            framed = np.pad(np.moveaxis(soft, axis, -1), ((0, 0), (1, 1)))
            soft = np.moveaxis(framed[:, low] * (1 - share) + framed[:, low + 1] * share, -1, axis)
            starts.append(first)
        return MaskWindow(soft >= 0.5, starts[1], starts[0], size).tight()

    @property
    def box(self) -> Box:
        """(x0, y0, x1, y1) of the foreground in pixels, x1 and y1 exclusive."""
        tight = self.tight()
        return tight.x, tight.y, tight.x + tight.values.shape[1], tight.y + tight.values.shape[0]

    @property
    def area(self) -> int:
        """Number of foreground pixels (values ≥ 0.5)."""
        return int(np.count_nonzero(self.foreground))


def union(masks: Sequence[MaskWindow], size: tuple[int, int]) -> MaskWindow:
    """All pixels that are in any of the bool masks of one image, which is (height, width)."""
    drawn = [mask for mask in masks if mask.values.size]
    if len(drawn) < 2:
        return drawn[0] if drawn else MaskWindow(np.zeros((0, 0), bool), 0, 0, size)
    x0, y0 = min(mask.x for mask in drawn), min(mask.y for mask in drawn)
    x1 = max(mask.x + mask.values.shape[1] for mask in drawn)
    y1 = max(mask.y + mask.values.shape[0] for mask in drawn)
    canvas = np.zeros((y1 - y0, x1 - x0), bool)
    for mask in drawn:
        replace(mask, x=mask.x - x0, y=mask.y - y0).of(canvas)[mask.values] = True
    return MaskWindow(canvas, x0, y0, size)


class Mask:
    """A binary mask as COCO's runs, validated on construction; equal and hashed by content, never changed.

    The runs are parsed and checked once; text form, area and box are computed once, when asked for. Runs of no pixels,
    but for the first, are joined to their neighbours: pycocotools takes two of them for the end of the masks when it
    compares two masks, and writes beyond its memory when it merges masks that have many.
    """

    size: tuple[int, int]  # (height, width) of the image, pixels

    def __init__(self, size: tuple[int, int], counts: str) -> None:
        """Reads pycocotools' text form.

        Raises:
            InputError: the size is not that of an image, or the runs are no numbers, negative, or do not add up
                to height × width (pycocotools would crash or read foreign memory on some of these).
        """
        check_size(size)
        self.size, self.runs = size, _checked(_runs_from_text(counts), size)

    @classmethod
    def parsed(cls, masks: Sequence[tuple[tuple[int, int], str]]) -> list[Mask]:
        """Masks from many sizes and texts, in a fraction of the time of one by one.

        Raises InputError where one of them is damaged; construct each to see which.
        """
        if not all(counts for _, counts in masks):
            raise InputError("an RLE's counts are empty")
        stops = np.cumsum([len(counts) for _, counts in masks])
        numbers, ends = _numbers("".join([counts for _, counts in masks]))
        lasts = np.searchsorted(ends, stops - 1)
        if (ends[lasts] != stops - 1).any():
            raise InputError("an RLE's counts end in the middle of a number")
        found = []
        for (size, _), runs in zip(masks, np.split(numbers, lasts[:-1] + 1), strict=True):
            check_size(size)
            found.append(cls._known(size, runs=_checked(_summed(runs), size)))
        return found

    @classmethod
    def from_runs(cls, runs: Sequence[int] | NDArray[np.integer[Any]], size: tuple[int, int]) -> Mask:
        """A mask from uncompressed runs: background and foreground in turn, background first; raises as the class."""
        check_size(size)
        for position, run in enumerate(() if isinstance(runs, np.ndarray) else runs):
            if type(run) is not int or not 0 <= run <= MAX_PIXELS:
                what = "which is no number of pixels" if type(run) is int else "not a whole number"
                raise InputError(f"run {position} of the RLE is {short(run)}, {what}")
        return cls._known(size, runs=_checked(np.asarray(runs, np.int64), size))

    @classmethod
    def from_window(cls, window: MaskWindow) -> Mask:
        """The mask of a window (soft values count from 0.5 on), as pycocotools' ``encode`` gives it."""
        return cls._known(window.image_size, runs=_runs_of_window(window))

    @classmethod
    def restored(cls, size: tuple[int, int], counts: str, area: int, box: Box) -> Mask:
        """A mask from attributes that one had before; they are taken unchecked."""
        return cls._known(size, counts=counts, area=area, box=box)

    @classmethod
    def _known(cls, size: tuple[int, int], **properties: Any) -> Mask:
        """A mask of which ``runs`` or ``counts`` are known, and perhaps more; nothing is checked."""
        mask = cls.__new__(cls)
        mask.__dict__.update(properties, size=size)
        return mask

    @cached_property
    def runs(self) -> NDArray[np.int32]:
        """[runs] lengths in pixels, background first; only the first may be 0."""
        return _frozen(_runs_from_text(self.counts))

    @cached_property
    def counts(self) -> str:
        """The runs as pycocotools' text form."""
        return _texts_from_runs([self.runs])[0]

    @cached_property
    def area(self) -> int:
        """Number of foreground pixels."""
        return int(self.runs[1::2].sum())

    @cached_property
    def box(self) -> Box:
        """(x0, y0, x1, y1) of the foreground in pixels, x1 and y1 exclusive; all 0 where there is none."""
        return _box(self.runs, self.size[0])

    @staticmethod
    def encode(masks: Sequence[Mask]) -> None:
        """Makes the text form of many masks at once, which takes a fraction of the time of one by one."""
        missing = [mask for mask in masks if "counts" not in mask.__dict__]
        if missing:
            texts = _texts_from_runs([mask.runs for mask in missing])
            for mask, text in zip(missing, texts, strict=True):
                mask.counts = text

    def decode(self) -> MaskWindow:
        """The mask inside its bounding box, bool; costs the columns of the box, not the image."""
        height, (x0, y0, x1, y1) = self.size[0], self.box
        # cut the list of runs to the columns x0 ... x1, so that only these are ever pixels
        edges = np.clip(np.cumsum(self.runs, dtype=np.int64), x0 * height, x1 * height)
        lengths = np.diff(edges, prepend=x0 * height)
        columns = np.repeat(np.arange(len(edges)) % 2 == 1, lengths).reshape(x1 - x0, height)
        return MaskWindow(np.ascontiguousarray(columns[:, y0:y1].T), x0, y0, self.size)

    def differing(self, other: Mask) -> int:
        """Number of pixels that belong to one of two masks of the same size, and not to the other."""
        # every edge of either mask turns the difference on or off
        edges = np.concatenate([mask.runs[:-1].cumsum(dtype=np.int64) for mask in (self, other)])
        edges.sort(kind="stable")  # which merges what is sorted in parts
        rest = self.size[0] * self.size[1] if len(edges) % 2 else 0
        return int(edges[1::2].sum()) - int(edges[::2].sum()) + rest

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.size == other.size and np.array_equal(self.runs, other.runs)

    def __hash__(self) -> int:
        return hash((self.size, self.runs.tobytes()))

    def __repr__(self) -> str:
        return f"Mask(size={self.size}, counts={self.counts!r})"

    def __getstate__(self) -> dict[str, Any]:  # text is made again, and bytes are smaller than an array
        known = {name: value for name, value in self.__dict__.items() if name != "counts"}
        return known | {"runs": self.runs.tobytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, runs=np.frombuffer(state["runs"], np.int32))


def check_size(size: tuple[int, int]) -> None:
    """Raises InputError where a size is not that of an image."""
    height, width = size
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        stated = f"{short(height)}×{short(width)} (height × width)"
        raise InputError(f"the mask's size is {stated}, not that of an image")


def _frozen(runs: NDArray[Any]) -> NDArray[np.int32]:
    runs = runs.astype(np.int32)
    runs.flags.writeable = False
    return runs


def _checked(runs: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int32]:
    """The runs without empty ones but the first."""
    pixels, shortest = size[0] * size[1], runs.min(initial=MAX_PIXELS)
    # run by run first: a sum of longer ones could come round to the right number in 64 bits
    if shortest < 0 or runs.max(initial=0) > pixels or int(runs.sum()) != pixels:
        if shortest < 0:
            raise InputError(f"run {int((runs < 0).argmax())} of the RLE is negative")
        total, stated = sum(runs.tolist()), f"{size[0]}×{size[1]}"
        reason = f"the RLE's runs add up to {total} pixels, but its size {stated} has {pixels}"
        raise InputError(reason, remedy="check that size is [height, width] and that counts are complete")
    if shortest > 0 or runs[1:].all():
        return _frozen(runs)
    ends = np.cumsum(runs)
    foreground = (np.arange(len(runs)) % 2 == 1) & (runs > 0)
    return _runs_between((ends - runs)[foreground], ends[foreground], int(ends[-1]))


def _runs_from_text(counts: str) -> NDArray[np.int64]:
    return _summed(_numbers(counts)[0]) if counts else np.zeros(0, np.int64)


def _numbers(counts: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of a text, and the position of the last character of each."""
    codes = np.frombuffer(counts.encode("ascii", "replace"), np.uint8) - np.uint8(_FIRST_CHARACTER)
    if codes.max() > 63 or not counts.isascii():  # those below the first have come round to above 200
        at = next(at for at, letter in enumerate(counts) if not "0" <= letter <= "o")
        raise InputError(f"the RLE's counts have {counts[at]!r} at character {at}, which belongs to no RLE")
    if codes[-1] & 32:
        reason = "the RLE's counts end in the middle of a number"
        raise InputError(reason, remedy="check that the file is complete")
    (ends,) = (codes < 32).nonzero()
    lengths = ends + 1
    lengths[1:] -= lengths[:-1].copy()
    if lengths.max() > _LONGEST_NUMBER:
        raise InputError("the RLE's counts have a run longer than any image")
    numbers = codes[ends].astype(np.int64)
    numbers -= (numbers & 16) << 1  # the last group's top bit is the sign
    (longer,) = (lengths > 1).nonzero()
    for group in range(1, _LONGEST_NUMBER):
        if not len(longer):
            break
        numbers[longer] = (numbers[longer] << 5) | (codes[ends[longer] - group] & 31)
        longer = longer[lengths[longer] > group + 1]
    return numbers, ends


def _summed(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Runs in place of numbers, of which each from the fourth on is the difference to the run two before."""
    numbers[1::2].cumsum(out=numbers[1::2])
    numbers[2::2].cumsum(out=numbers[2::2])
    return numbers


def _texts_from_runs(masks: Sequence[NDArray[np.int32]]) -> list[str]:
    """The text form of many masks; most of what one alone costs is numpy's time for a call."""
    runs = np.concatenate(masks)
    starts = np.array([0, *map(len, masks)]).cumsum()
    rest = runs.copy()
    rest[3:] -= runs[1:-2]
    first = (starts[:-1, None] + np.arange(3)).ravel()  # beyond a shorter mask these belong to the next one
    first = first[first < len(runs)]
    rest[first] = runs[first]
    characters = np.zeros((len(rest), _LONGEST_NUMBER), np.uint8)  # [runs, groups]; 0 = no character
    lengths = np.zeros(len(rest), np.int64)  # [runs] in characters
    unfinished = np.arange(len(rest))
    for group in range(_LONGEST_NUMBER):
        low = rest & 31
        rest = rest >> 5
        more = rest != -(low >> 4)  # what is left is more than the sign
        characters[unfinished, group] = low + (_FIRST_CHARACTER + 32 * more)
        lengths[unfinished] = group + 1
        unfinished, rest = unfinished[more], rest[more]
        if not len(rest):
            break
    text = characters[characters != 0].tobytes().decode("ascii")
    ends = np.add.reduceat(lengths, starts[:-1]).cumsum().tolist()
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _runs_of_window(window: MaskWindow) -> NDArray[np.int32]:
    foreground = window.foreground
    rows, columns = foreground.shape
    height, width = window.image_size
    framed = np.zeros((columns, rows + 2), bool)  # each column between two background pixels
    framed[:, 1:-1] = foreground.T
    flat = framed.ravel()
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), rows + 2)
    edges = (window.x + column) * height + window.y + row
    return _runs_between(edges[::2], edges[1::2], height * width)


def _runs_between(starts: NDArray[np.int64], ends: NDArray[np.int64], total: int) -> NDArray[np.int32]:
    """Runs from where stretches of foreground start and end; those that touch become one."""
    # a run at the bottom of a column goes on at the top of the next one
    apart = starts[1:] != ends[:-1]
    edge = np.ones(min(len(starts), 1), bool)
    starts, ends = starts[np.concatenate((edge, apart))], ends[np.concatenate((apart, edge))]
    runs = np.diff(np.stack((starts, ends), 1).ravel(), prepend=0, append=total)
    return _frozen(runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs)


def _box(runs: NDArray[np.int32], height: int) -> Box:
    """Of runs of which only the first may be empty."""
    if len(runs) < 2:
        return 0, 0, 0, 0
    edges = runs.cumsum(dtype=np.int64)
    last = edges[1::2] - 1  # first and last pixel of each stretch of foreground
    first = edges[: 2 * len(last) : 2]
    columns = first // height
    x0, x1 = int(columns[0]), int(last[-1]) // height + 1
    tops, bottoms = first - columns * height, last - columns * height
    y1 = int(bottoms.max()) + 1
    # a run over the end of a column touches its last row and the next one's first
    return (x0, 0, x1, height) if y1 > height else (x0, int(tops.min()), x1, y1)
