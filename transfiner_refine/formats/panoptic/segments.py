"""The entries of ``segments_info``: read, and their text with new areas and boxes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transfiner_refine.errors import InputError
from transfiner_refine.formats.coco.photos import Listing
from transfiner_refine.formats.coco.records import compact, edited, score_of
from transfiner_refine.formats.json_scan import Ambiguous, elements, members, short
from transfiner_refine.formats.panoptic.pixels import LARGEST_ID

__all__ = ["Segment", "segment_of", "with_boxes"]


@dataclass(frozen=True)
class Segment:
    """One segment as its entry has it.

    Attributes:
        id: its value in the PNG.
        category_id: its category.
        score: some detectors add one; None without.
        is_crowd: ``iscrowd`` is set.
        is_stuff: its category is no thing.
    """

    id: int
    category_id: int
    score: float | None
    is_crowd: bool
    is_stuff: bool


def segment_of(entry: Any, listing: Listing, taken: Collection[int]) -> Segment:
    """An entry of ``segments_info``.

    Args:
        entry: the parsed entry.
        listing: the categories.
        taken: ids of the image's segments before it.

    Raises:
        InputError: no id, an id that is taken, or a category that is not listed.
    """
    if not isinstance(entry, dict):
        raise InputError("is no JSON object")
    if isinstance(entry, Ambiguous):
        raise InputError(f"has the key {short(entry.key)} twice", remedy="keep one of them")
    segment_id, category_id = entry.get("id"), entry.get("category_id")
    if type(segment_id) is not int or not 0 < segment_id <= LARGEST_ID:
        raise InputError(f"id is {short(segment_id)}, not a number from 1 to {LARGEST_ID}")
    if segment_id in taken:
        raise InputError(f"id {segment_id} is that of another segment of the image")
    if type(category_id) is not int or category_id not in listing.categories:
        raise InputError(f"category_id is {short(category_id)}, which is not among the categories")
    return Segment(
        segment_id,
        category_id,
        score_of(entry),
        bool(entry.get("iscrowd")),
        category_id in listing.stuff,
    )


def with_boxes(text: str, found: Mapping[int, tuple[int, Sequence[int]]]) -> str:
    """The text of an annotation with ``area`` and ``bbox`` of its segments as they are now.

    Args:
        text: the annotation as it is in its file.
        found: area and box of each id that has pixels.
    """
    edits: list[tuple[int, int, str]] = []
    for key, start, _ in members(text):
        if key != "segments_info":
            continue
        for segment_start, segment_end in elements(text, start):
            entry = json.loads(text[segment_start:segment_end])
            if isinstance(entry, dict) and type(entry.get("id")) is int and entry["id"] in found:
                area, box = found[entry["id"]]
                new = {"area": compact(area), "bbox": compact(list(box))}
                edits += [
                    (at, end, new[inner]) for inner, at, end in members(text, segment_start) if inner in new
                ]
    return edited(text, edits)
