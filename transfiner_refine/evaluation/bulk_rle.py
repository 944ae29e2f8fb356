"""Compressed COCO masks in bulk: checked and measured thousands at a time.

A results file can have half a million masks, and COCO's evaluators read them in C without looking whether
they are sound. ``formats.rle.RleMask`` checks and measures one; most of what that costs is numpy's time for a
call, which many masks share here (a fifth of the time for COCO's). The code of the runs is described there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.formats.rle import MAX_PIXELS
from transfiner_refine.types import InputError

__all__ = ["Measured", "Rle", "measure"]

Rle = dict[str, Any]
"""A compressed COCO mask as the evaluators take it: ``size`` [height, width] and ``counts``, a string."""

_LONGEST_NUMBER = 6  # groups of five bits
_BATCH = 4096  # masks unpacked together: enough to hide numpy's cost per call, some tens of MB of run lengths


@dataclass(frozen=True)
class Measured:
    """What there is to know of many masks.

    Attributes:
        areas: [masks] foreground pixels.
        has_empty_runs: [masks] whether it has runs of no pixels, which ``RleMask`` takes out and pycocotools must
            not see.
    """

    areas: NDArray[np.int64]
    has_empty_runs: NDArray[np.bool_]


def measure(masks: Sequence[Rle]) -> Measured:
    """Measures masks; checks every mask on the way.

    Raises:
        InputError: a mask whose runs are damaged or do not fill its image; ``record`` is its index.
    """
    areas, empty = [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    for first in range(0, len(masks), _BATCH):
        try:
            lengths, starts = _run_lengths(masks[first : first + _BATCH])
        except InputError as error:
            raise InputError(error.reason, record=str(first + int(error.record or 0))) from error
        place = np.arange(len(lengths)) - np.repeat(starts[:-1], np.diff(starts))
        areas.append(np.add.reduceat(lengths * (place % 2), starts[:-1]))
        empty.append(_any_in((lengths == 0) & (place > 0), starts[1:]))
    return Measured(np.concatenate(areas), np.concatenate(empty))


def _run_lengths(masks: Sequence[Rle]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The run lengths of many compressed masks at once.

    Args:
        masks: compressed RLEs.

    Returns:
        lengths: [runs] of all masks, one after the other; each mask's first run is background.
        starts: [masks + 1]; mask i has ``lengths[starts[i] : starts[i + 1]]``.

    Raises:
        InputError: a mask whose runs are damaged or do not fill its image; ``record`` is its index.
    """
    # lone surrogates, which JSON can spell, become foreign bytes like all else beyond ASCII
    strings = [mask["counts"].encode("utf-8", "surrogatepass") for mask in masks]
    sizes = np.fromiter((len(string) for string in strings), np.int64, len(strings))
    groups = np.frombuffer(b"".join(strings), np.uint8).astype(np.int64) - 48  # [characters]
    last = (groups & 32) == 0  # the character ends its number
    char_ends = np.cumsum(sizes)
    foreign = _any_in((groups < 0) | (groups > 63), char_ends)
    _refuse(foreign | (sizes == 0), "counts are not a COCO run-length string")
    _refuse(~last[char_ends - 1], "counts end in the middle of a number")

    number_ends = np.flatnonzero(last)
    number_starts = np.concatenate([[0], number_ends[:-1] + 1])
    place = np.arange(len(groups)) - np.repeat(number_starts, number_ends - number_starts + 1)
    _refuse(_any_in(place >= _LONGEST_NUMBER, char_ends), "counts hold a run longer than any image")
    values = np.add.reduceat((groups & 31) << (5 * place), number_starts)  # [runs]
    values -= ((groups[number_ends] & 16) >> 4) << (5 * (place[number_ends] + 1))  # two's complement

    starts = np.concatenate([[0], np.searchsorted(number_ends, char_ends)])
    lengths = _undo_differences(values, starts)
    totals = np.add.reduceat(lengths, starts[:-1])
    sizes_fit = np.array([_is_image_size(*mask["size"]) for mask in masks], bool)
    _refuse(~sizes_fit, "size is not that of an image")
    pixels = np.array([mask["size"][0] * mask["size"][1] for mask in masks], np.int64)
    # run by run, too: a sum of runs too long could come round to the right number in 64 bits
    impossible = (lengths < 0) | (lengths > np.repeat(pixels, np.diff(starts)))
    _refuse((totals != pixels) | _any_in(impossible, starts[1:]), "run lengths do not add up to the image")
    return lengths, starts


def _is_image_size(height: int, width: int) -> bool:
    return height > 0 and width > 0 and height * width <= MAX_PIXELS


def _undo_differences(values: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Run lengths from stored values: l[i] = v[i] + l[i − 2] for i > 2, within each mask."""
    position = np.arange(len(values)) - np.repeat(starts[:-1], np.diff(starts))
    mask = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    # three chains a mask: run 0 alone, runs 1, 3, 5 … and runs 2, 4, 6 …; each is a running sum
    chain = 3 * mask + np.where(position == 0, 0, 2 - position % 2)
    order = np.argsort(chain, kind="stable")
    sums = np.cumsum(values[order])
    new = np.ones(len(order), bool)
    new[1:] = chain[order][1:] != chain[order][:-1]
    first = np.flatnonzero(new)
    before = np.concatenate([[0], sums[first[1:] - 1]])
    lengths = np.empty_like(values)
    lengths[order] = sums - np.repeat(before, np.diff(np.append(first, len(values))))
    return lengths


def _any_in(flags: NDArray[np.bool_], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether any flag is set in each stretch that ends (exclusively) at ``ends``."""
    total = np.concatenate([[0], np.cumsum(flags)])
    return np.asarray(np.diff(total[ends], prepend=0) > 0)


def _refuse(faulty: NDArray[np.bool_], reason: str) -> None:
    """Raises an ``InputError`` for the first faulty mask, its index as ``record``."""
    if faulty.any():
        raise InputError(reason, record=str(int(np.argmax(faulty))))
