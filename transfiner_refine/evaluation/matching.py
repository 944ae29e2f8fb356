"""Which detection belongs to which true instance: as a file says, or by the best IoU in image and class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as codec

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.coco_files import Annotations, Detection, TrueInstance, load_match, rle_of

__all__ = ["Match", "check_same_detections", "match", "match_by_ids", "match_by_iou"]

Match = tuple[int, int]
"""Index of a true instance in ``Annotations.instances``, index of its detection."""


def match(
    annotations: Annotations, detections: Sequence[Detection], source: str | Path, file: str | Path | None
) -> tuple[list[Match], str]:
    """Matches as well as can be known: as a match file says, else the records themselves, else by the best IoU.

    Args:
        annotations: the truth.
        detections: of the same images; the coarse masks where there are several versions.
        source: the file of the detections, for messages.
        file: a match file (see ``load_match``), or None.

    Returns:
        the matches, and how they were found: "match file", "annotation_id" or "best IoU".

    Raises:
        InputError: the file cannot be used, or names an annotation that does not fit.
    """
    if file is not None:
        return match_by_ids(annotations, detections, load_match(file, len(detections)), file), "match file"
    if any(detection.annotation_id is not None for detection in detections):
        keys = [detection.annotation_id for detection in detections]
        return match_by_ids(annotations, detections, keys, source), "annotation_id"
    return match_by_iou(annotations, detections), "best IoU"


def match_by_ids(
    annotations: Annotations, detections: Sequence[Detection], ids: Sequence[int | None], source: str | Path
) -> list[Match]:
    """Matches detections with the annotations they name, in the order of the detections.

    Args:
        annotations: the truth; crowds cannot be named.
        detections: of the same images.
        ids: annotation id of each detection, None for one that has no true instance.
        source: the file the ids stand in, for messages.

    Raises:
        InputError: an id that does not exist, is a crowd's, is of another image, or stands there twice.
    """
    index_of = {instance.id: index for index, instance in enumerate(annotations.instances)}
    matches: list[Match] = []
    taken: dict[int, int] = {}
    for number, (detection, key) in enumerate(zip(detections, ids, strict=True)):
        if key is None:
            continue
        label = f"record {detection.record}"
        if key not in index_of:
            raise InputError(f"annotation id {key} is not in {annotations.file}", file=source, record=label)
        instance = annotations.instances[index_of[key]]
        if instance.is_crowd:
            raise InputError(f"annotation id {key} is a crowd region", file=source, record=label)
        if instance.image_id != detection.image_id:
            reason = f"annotation id {key} is of image {instance.image_id}, the mask of {detection.image_id}"
            raise InputError(reason, file=source, record=label)
        if key in taken:
            reason = f"annotation id {key} already belongs to record {taken[key]}"
            raise InputError(reason, file=source, record=label, remedy="name each annotation once")
        taken[key] = detection.record
        matches.append((index_of[key], number))
    return matches


def match_by_iou(annotations: Annotations, detections: Sequence[Detection]) -> list[Match]:
    """Matches each true instance with at most one detection of its image and category, the best pairs first.

    Scores play no part: what counts is which coarse mask shows the instance. Crowds stay without a match.

    Returns:
        matches in the order of the true instances; instances no detection overlaps have none.
    """
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, detection in enumerate(detections):
        found[detection.image_id, detection.category_id].append(number)
    wanted: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, instance in enumerate(annotations.instances):
        if not instance.is_crowd:
            wanted[instance.image_id, instance.category_id].append(index)
    matches: list[Match] = []
    for place, indices in wanted.items():
        matches += _best_pairs(annotations.instances, indices, detections, found.get(place, []))
    return sorted(matches)


def check_same_detections(
    before: Sequence[Detection], after: Sequence[Detection], files: tuple[str | Path, str | Path]
) -> None:
    """Checks that two results files hold the same detections in the same order, but for their masks.

    Raises:
        InputError: they do not.
    """
    remedy = (
        "they must be the same detections in the same order; without --before the results are scored alone"
    )
    if len(before) != len(after):
        reason = f"{len(after)} records, but {len(before)} in {files[0]}"
        raise InputError(reason, file=files[1], remedy=remedy)
    for one, other in zip(before, after, strict=True):
        if (one.image_id, one.category_id) != (other.image_id, other.category_id):
            reason = (
                f"image {other.image_id}, category {other.category_id}, but "
                f"image {one.image_id}, category {one.category_id} in {files[0]}"
            )
            raise InputError(reason, file=files[1], record=f"record {other.record}", remedy=remedy)


def _best_pairs(
    instances: Sequence[TrueInstance],
    indices: Sequence[int],
    detections: Sequence[Detection],
    numbers: Sequence[int],
) -> list[Match]:
    """Greedy one-to-one matching within one image and category; ties go to the earlier record."""
    if not numbers:
        return []
    ious = codec.iou(  # [detections, instances], on the run lengths
        [rle_of(detections[number].mask) for number in numbers],
        [rle_of(instances[index].mask) for index in indices],
        [0] * len(indices),
    )
    pairs = [
        (-ious[row, column], indices[column], numbers[row]) for row, column in np.argwhere(ious > 0).tolist()
    ]
    matches: list[Match] = []
    free_instances, free_masks = set(indices), set(numbers)
    for _, index, number in sorted(pairs):
        if index in free_instances and number in free_masks:
            free_instances.remove(index)
            free_masks.remove(number)
            matches.append((index, number))
    return matches
