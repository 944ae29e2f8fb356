"""One COCO record: read as an instance, and its text with another mask in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable
from typing import Any

from transfiner_refine.errors import InputError
from transfiner_refine.formats.json_scan import Ambiguous, members, short
from transfiner_refine.formats.records import Instance
from transfiner_refine.formats.segmentation import mask_from_segmentation
from transfiner_refine.masks import Mask

__all__ = ["compact", "edited", "instance_of", "mask_values", "score_of", "with_mask"]

_LARGEST = sys.float_info.max
_encode = json.JSONEncoder(separators=(",", ":")).encode


def instance_of(
    record: Any,
    index: int,
    label: str,
    image_size: Callable[[], tuple[int, int]],
    stuff: Collection[int] = (),
    mask: Mask | None = None,
) -> Instance:
    """A results record or an annotation as an instance.

    Args:
        record: the parsed record.
        index: its place in the file.
        label: how a person finds it.
        image_size: gives (height, width) of its image, pixels; asked only for polygons.
        stuff: ids of categories that are no things.
        mask: its mask, if that has been parsed already.

    Raises:
        InputError: its mask or its score is missing or damaged, or a key comes twice.
    """
    segmentation = record.get("segmentation")
    for part in (record, segmentation):
        if isinstance(part, Ambiguous):
            raise InputError(f"has the key {short(part.key)} twice", remedy="keep one of them")
    category_id, instance_id = record.get("category_id"), record.get("id")
    return Instance(
        index=index,
        mask=mask or mask_from_segmentation(segmentation, image_size),
        label=label,
        category_id=category_id if type(category_id) is int else None,
        score=score_of(record),
        is_crowd=bool(record.get("iscrowd")),
        instance_id=instance_id if type(instance_id) is int else None,
        is_stuff=type(category_id) is int and category_id in stuff,
    )


def score_of(record: dict[str, Any]) -> float | None:
    """The score of a record, None where it has none.

    Raises:
        InputError: it is no finite number.
    """
    score = record.get("score")
    # an int of hundreds of digits is too large for a float
    if score is None or (type(score) in (int, float) and -_LARGEST <= score <= _LARGEST):
        return None if score is None else float(score)
    raise InputError(f"score is {short(score)}", remedy="write a finite number")


def with_mask(text: str, mask: Mask, *, keep_boxes: bool) -> str:
    """The text of a sound record with another mask; all that does not follow from the mask stays as it is.

    Args:
        text: the record as it is in its file.
        mask: its new mask.
        keep_boxes: leave ``bbox`` and ``area`` as they are, too.
    """
    x0, y0, x1, y1 = mask.box
    edits = []
    for key, start, end in members(text):
        if key == "segmentation":
            edits.append((start, end, compact(mask_values(mask))))
        elif key == "bbox" and not keep_boxes:
            edits.append((start, end, compact([float(x0), float(y0), float(x1 - x0), float(y1 - y0)])))
        elif key == "area" and not keep_boxes:
            is_float = isinstance(json.loads(text[start:end]), float)
            edits.append((start, end, compact(float(mask.area) if is_float else mask.area)))
    return edited(text, edits)


def edited(text: str, edits: Iterable[tuple[int, int, str]]) -> str:
    """A text with some parts replaced: (start, end, new text), in rising order."""
    parts, at = [], 0
    for start, end, new in edits:
        parts += [text[at:start], new]
        at = end
    return "".join((*parts, text[at:]))


def mask_values(mask: Mask) -> dict[str, Any]:
    """A mask as the ``segmentation`` that COCO's tools take."""
    return {"size": list(mask.size), "counts": mask.counts}


def compact(value: Any) -> str:
    """JSON without white space."""
    return _encode(value)
