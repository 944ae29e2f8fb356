"""Matched-instance scores: what refining did to each mask whose true mask is known, and to all on average.

A detector's mistakes (missed objects, wrong classes, scores) play no part here, as they do in AP: each coarse
mask is compared with the one true mask it belongs to, before and after.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as codec

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.coco_files import Annotations, Entry, load_match, rle_of
from transfiner_refine.evaluation.overlap import (
    BOUNDARY_RATIO,
    AnyMask,
    MaskScores,
    as_window,
    mask_fit,
    mean_boundary_accuracy,
    mean_scores,
)

if TYPE_CHECKING:
    from transfiner_refine.evaluation.error_analysis import ErrorRow

MIN_AREA = 32**2
"""True area from which an instance counts, pixels: COCO's upper end of "small"."""

MIN_COARSE_IOU = 0.5
"""Coarse IoU from which an instance counts: below it the coarse mask shows something else than the truth."""

CHANGE_THRESHOLD = 0.005
"""IoU change (a share, so half a point) up to which a mask counts as unchanged."""

SIZES: dict[str, tuple[float, float]] = {
    "all": (0, math.inf),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, math.inf),
}
"""COCO's size classes by true area, [from, to) in pixels."""

Match = tuple[int, int]
"""Index of a true instance in ``Annotations.instances``, index of its detection."""

Row = TypeVar("Row", "InstanceScore", "ErrorRow")
_RESAMPLES = 2000  # of the bootstrap: the ends of a 95 % interval are then steady to about 3 % of its width
_CONFIDENCE = 0.95


class InstanceScore(NamedTuple):
    """One instance, before and after; ``after`` is None where there is no refined mask."""

    area: int  # of the true mask, pixels
    before: MaskScores
    after: MaskScores | None
    counted: bool  # it takes part in the summary: large enough, coarse mask near enough
    image: Hashable  # what tells its image from others, for the bootstrap


class Interval(NamedTuple):
    """A mean with its 95 % bootstrap interval over images; the ends are nan where there is but one image."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SizeSummary:
    """Means over the counted instances of one size class; all but ``before`` None where there are no refined masks."""

    size: str  # key of SIZES
    count: int
    before: MaskScores
    after: MaskScores | None = None
    iou_change: Interval | None = None
    boundary_iou_change: Interval | None = None
    better: float | None = None  # share of the instances whose IoU rose by more than CHANGE_THRESHOLD
    worse: float | None = None  # fell
    unchanged: float | None = None


class MatchedScores(NamedTuple):
    """The scores of every instance in the order they came, counted or not, and their summary by key of ``SIZES``."""

    rows: tuple[InstanceScore, ...]
    summary: dict[str, SizeSummary]


def mask_scores(truth: AnyMask, mask: AnyMask, *, dilation_ratio: float = BOUNDARY_RATIO) -> MaskScores:
    """IoU, boundary IoU and mBA of one mask against its true mask.

    ``dilation_ratio`` is the width of the boundary band as a share of the image's diagonal. Masks of images of
    different sizes raise InputError.
    """
    true_window, window = as_window(truth), as_window(mask)
    fit = mask_fit(true_window, window, dilation_ratio=dilation_ratio)
    return MaskScores(*fit, mean_boundary_accuracy(true_window, window))


def matched_scores(
    truth: Iterable[AnyMask],
    coarse: Iterable[AnyMask],
    refined: Iterable[AnyMask] | None = None,
    *,
    images: Iterable[Hashable] | None = None,
    dilation_ratio: float = BOUNDARY_RATIO,
    min_area: int = MIN_AREA,
    min_coarse_iou: float = MIN_COARSE_IOU,
    seed: int = 0,
) -> MatchedScores:
    """Scores of masks before and after refining, each against its own true mask.

    The sequences run in step and are read once, so generators keep one instance in memory at a time.

    Args:
        truth: true masks.
        coarse: the mask of each before.
        refined: the mask of each after; None scores the coarse masks alone.
        images: image of each, any hashable. Instances of one image share its difficulty, so the bootstrap
            draws images; None takes each instance for an image of its own.
        dilation_ratio: width of the boundary band as a share of the image's diagonal.
        min_area: true area from which an instance is counted, pixels.
        min_coarse_iou: coarse IoU from which an instance is counted.
        seed: of the bootstrap.

    Raises:
        InputError: sequences of different lengths, or masks of different image sizes.
    """
    sequences: dict[str, Any] = {"truth": truth, "coarse": coarse, "refined": refined, "image": images}
    given = {name: sequence for name, sequence in sequences.items() if sequence is not None}
    end, rows = object(), list[InstanceScore]()
    for index, entries in enumerate(zip_longest(*given.values(), fillvalue=end)):
        if any(entry is end for entry in entries):
            raise InputError(f"not as many masks to compare as true masks: one list ends at {index}")
        entry = dict(zip(given, entries, strict=True))
        window = as_window(entry["truth"])
        before = mask_scores(window, entry["coarse"], dilation_ratio=dilation_ratio)
        after = None
        if refined is not None:
            after = mask_scores(window, entry["refined"], dilation_ratio=dilation_ratio)
        counted = window.area >= min_area and before.iou >= min_coarse_iou
        rows.append(InstanceScore(window.area, before, after, counted, entry.get("image", index)))
    counted_rows = by_size(row for row in rows if row.counted)
    summary = {size: _summary(size, of, refined is not None, seed) for size, of in counted_rows.items()}
    return MatchedScores(tuple(rows), summary)


def size_class(area: float) -> str:
    """The class of a true area in pixels, "all" aside."""
    return next(name for name, (low, high) in SIZES.items() if name != "all" and low <= area < high)


def by_size(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each size class, by the ``area`` of their true masks in pixels."""
    rows = list(rows)
    return {size: [row for row in rows if low <= row.area < high] for size, (low, high) in SIZES.items()}


def _summary(size: str, rows: Sequence[InstanceScore], refined: bool, seed: int) -> SizeSummary:
    before = mean_scores(MaskScores, [row.before for row in rows])
    if not refined:
        return SizeSummary(size, len(rows), before)
    afters = [row.after for row in rows if row.after is not None]
    changes = np.array([np.subtract(after, row.before) for row, after in zip(rows, afters, strict=True)])
    iou, boundary_iou, _ = changes.reshape(-1, 3).T  # [instances] each
    images = [row.image for row in rows]
    better, worse, same = (
        float(np.mean(each)) if rows else math.nan
        for each in (iou > CHANGE_THRESHOLD, iou < -CHANGE_THRESHOLD, abs(iou) <= CHANGE_THRESHOLD)
    )
    return SizeSummary(
        size=size,
        count=len(rows),
        before=before,
        after=mean_scores(MaskScores, afters),
        iou_change=bootstrap_mean(iou, images, seed=seed),
        boundary_iou_change=bootstrap_mean(boundary_iou, images, seed=seed),
        better=better,
        worse=worse,
        unchanged=same,
    )


def bootstrap_mean(values: NDArray[Any], images: Sequence[Hashable], *, seed: int = 0) -> Interval:
    """Mean of [instances] values with its 95 % percentile bootstrap interval, drawing whole images.

    The same seed gives the same interval.
    """
    if len(values) == 0:
        return Interval(math.nan, math.nan, math.nan)
    numbers: dict[Hashable, int] = {}
    image = np.array([numbers.setdefault(name, len(numbers)) for name in images])  # [instances]
    mean = float(np.mean(values))
    if len(numbers) == 1:
        return Interval(mean, math.nan, math.nan)
    sums, counts = np.bincount(image, values), np.bincount(image)  # [images]
    generator = np.random.default_rng(seed)
    means = np.empty(_RESAMPLES)
    for resample in range(_RESAMPLES):
        drawn = generator.integers(len(numbers), size=len(numbers))
        means[resample] = sums[drawn].sum() / counts[drawn].sum()
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def match_detections(
    annotations: Annotations, detections: Sequence[Entry], source: str | Path, file: str | Path | None
) -> tuple[list[Match], str]:
    """Which detection belongs to which true instance: as a match file says, else the records, else the best IoU.

    ``source`` is the file of the detections, ``file`` a match file (see ``load_match``) or None. Gives the matches, and
    how they were found: "match file", "annotation_id" or "best IoU".
    """
    if file is not None:
        return match_by_ids(annotations, detections, load_match(file, len(detections)), file), "match file"
    ids = [detection.annotation_id for detection in detections]
    if any(key is not None for key in ids):
        return match_by_ids(annotations, detections, ids, source), "annotation_id"
    return match_by_iou(annotations, detections), "best IoU"


def match_by_ids(
    annotations: Annotations, detections: Sequence[Entry], ids: Sequence[int | None], source: str | Path
) -> list[Match]:
    """Matches detections with the annotations they name (None for none), in the order of the detections.

    Raises:
        InputError: an id that does not exist, is a crowd's, is of another image, or stands there twice; ``source`` is
            the file the ids stand in.
    """
    index_of = {instance.instance_id: index for index, instance in enumerate(annotations.instances)}
    matches: list[Match] = []
    taken: dict[int, str] = {}
    for number, (detection, key) in enumerate(zip(detections, ids, strict=True)):
        if key is None:
            continue
        instance = annotations.instances[index_of[key]] if key in index_of else None
        reason = remedy = None
        if instance is None:
            reason = f"is not in {annotations.file}"
        elif instance.is_crowd:
            reason = "is a crowd region"
        elif instance.image_id != detection.image_id:
            reason = f"is of image {instance.image_id}, the mask of {detection.image_id}"
        elif key in taken:
            reason, remedy = f"already belongs to {taken[key]}", "name each annotation once"
        if reason is not None:
            reason, label = f"annotation id {key} {reason}", detection.label
            raise InputError(reason, file=source, record=label, remedy=remedy)
        taken[key] = detection.label
        matches.append((index_of[key], number))
    return matches


def match_by_iou(annotations: Annotations, detections: Sequence[Entry]) -> list[Match]:
    """Matches each true instance with at most one detection of its image and category, the best pairs first.

    Scores play no part: what counts is which coarse mask shows the instance. Crowds, and instances that no detection
    overlaps, have no match. Of equally good pairs the earlier record is taken.
    """
    groups: dict[tuple[int, int], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for index, instance in enumerate(annotations.instances):
        if not instance.is_crowd:
            groups[instance.image_id, instance.category_id][0].append(index)
    for number, detection in enumerate(detections):
        groups[detection.image_id, detection.category_id][1].append(number)
    matches: list[Match] = []
    for indices, numbers in groups.values():
        if not indices or not numbers:
            continue
        ious = codec.iou(  # [detections, instances], on the run lengths
            [rle_of(detections[number].mask) for number in numbers],
            [rle_of(annotations.instances[index].mask) for index in indices],
            [0] * len(indices),
        )
        pairs = [(-ious[row, column], indices[column], numbers[row]) for row, column in np.argwhere(ious > 0)]
        free_instances, free_masks = set(indices), set(numbers)
        for _, index, number in sorted(pairs):
            if index in free_instances and number in free_masks:
                free_instances.remove(index)
                free_masks.remove(number)
                matches.append((index, number))
    return sorted(matches)


def check_same_detections(
    before: Sequence[Entry], after: Sequence[Entry], files: tuple[str | Path, str | Path]
) -> None:
    """Raises InputError unless two results files hold the same detections in the same order, but for their masks."""
    reason = label = None
    if len(before) != len(after):
        reason = f"{len(after)} records, but {len(before)} in {files[0]}"
    for one, other in zip(before, after, strict=False):
        places = [f"image {each.image_id}, category {each.category_id}" for each in (one, other)]
        if reason is None and places[0] != places[1]:
            reason, label = f"{places[1]}, but {places[0]} in {files[0]}", other.label
    if reason is not None:
        remedy = "they must be the same detections in the same order; without --before the results are scored alone"
        raise InputError(reason, file=files[1], record=label, remedy=remedy)
