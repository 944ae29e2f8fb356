"""Matched-instance scores: what refining did to each mask whose true mask is known, and to all on average.

A detector's mistakes (missed objects, wrong classes, scores) play no part here, as they do in AP: each coarse
mask is compared with the one true mask it belongs to, before and after.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.overlap import (
    BOUNDARY_RATIO,
    Mask,
    as_window,
    boundary,
    boundary_width,
    common_window,
    crop_iou,
    mean_boundary_accuracy,
)

__all__ = [
    "CHANGE_THRESHOLD",
    "MIN_AREA",
    "MIN_COARSE_IOU",
    "SIZES",
    "InstanceScore",
    "Interval",
    "MaskScores",
    "MatchedScores",
    "SizeSummary",
    "bootstrap_mean",
    "mask_scores",
    "matched_scores",
    "summarise",
]

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

_RESAMPLES = 2000  # of the bootstrap: the ends of a 95 % interval are then steady to about 3 % of its width
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class MaskScores:
    """How well a mask fits its true mask.

    Attributes:
        iou: mask IoU, in [0, 1].
        boundary_iou: boundary IoU, in [0, 1].
        mba: mean boundary accuracy, in [0, 1]; nan where the true mask has no outline.
    """

    iou: float
    boundary_iou: float
    mba: float


@dataclass(frozen=True)
class InstanceScore:
    """One instance, before and after.

    Attributes:
        index: position in the sequences that were compared.
        area: true area, pixels.
        before: scores of the coarse mask.
        after: scores of the refined mask; None where there is none.
        counted: the instance takes part in the summary (large enough, coarse mask near enough).
        image: what tells its image from others, for the bootstrap.
    """

    index: int
    area: int
    before: MaskScores
    after: MaskScores | None
    counted: bool
    image: Hashable

    @property
    def iou_change(self) -> float:
        """IoU after minus before; 0 where there is no refined mask."""
        return 0.0 if self.after is None else self.after.iou - self.before.iou


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval over images; the ends are nan where there is but one image."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SizeSummary:
    """Means over the counted instances of one size class.

    Attributes:
        size: key of ``SIZES``.
        count: instances.
        before: mean scores of the coarse masks, nan without instances.
        after: mean scores of the refined masks; None where there are none.
        iou_change: mean change of IoU; None like ``after``.
        boundary_iou_change: mean change of boundary IoU; None like ``after``.
        better, worse, unchanged: share of the instances whose IoU rose, fell, or did neither by more than
            ``CHANGE_THRESHOLD``; None like ``after``.
    """

    size: str
    count: int
    before: MaskScores
    after: MaskScores | None
    iou_change: Interval | None
    boundary_iou_change: Interval | None
    better: float | None
    worse: float | None
    unchanged: float | None


@dataclass(frozen=True)
class MatchedScores:
    """Every instance's scores, and their summary by size.

    Attributes:
        rows: one for each instance, in the order they came, the ones that are not counted included.
        summary: by key of ``SIZES``.
    """

    rows: tuple[InstanceScore, ...]
    summary: dict[str, SizeSummary]


def mask_scores(truth: Mask, mask: Mask, *, dilation_ratio: float = BOUNDARY_RATIO) -> MaskScores:
    """IoU, boundary IoU and mBA of one mask against its true mask.

    Args:
        truth: the true mask, [H, W] bool or a window of it.
        mask: the mask to judge, of the same image.
        dilation_ratio: width of the boundary band as a share of the image's diagonal.

    Raises:
        InputError: the masks belong to images of different sizes.
    """
    true_window, window = as_window(truth), as_window(mask)
    crops = common_window(true_window, window)
    width = boundary_width(true_window.image_size, dilation_ratio)
    return MaskScores(
        iou=crop_iou(*crops),
        boundary_iou=crop_iou(*(boundary(crop, width) for crop in crops)),
        mba=mean_boundary_accuracy(true_window, window),
    )


def matched_scores(
    truth: Iterable[Mask],
    coarse: Iterable[Mask],
    refined: Iterable[Mask] | None = None,
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
        truth: true masks, each [H, W] bool or a ``MaskWindow``.
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
    rows = []
    for index, true_mask, coarse_mask, refined_mask, image in _in_step(truth, coarse, refined, images):
        window = as_window(true_mask)
        before = mask_scores(window, coarse_mask, dilation_ratio=dilation_ratio)
        after = (
            None if refined_mask is None else mask_scores(window, refined_mask, dilation_ratio=dilation_ratio)
        )
        counted = window.area >= min_area and before.iou >= min_coarse_iou
        rows.append(InstanceScore(index, window.area, before, after, counted, image))
    summary = {size: summarise(rows, size, seed=seed, refined=refined is not None) for size in SIZES}
    return MatchedScores(tuple(rows), summary)


def summarise(
    rows: Sequence[InstanceScore], size: str = "all", *, refined: bool = True, seed: int = 0
) -> SizeSummary:
    """Means over the counted rows of one size class.

    Args:
        rows: scored instances; those not counted are left out.
        size: key of ``SIZES``.
        refined: the rows have scores after refining.
        seed: of the bootstrap.
    """
    low, high = SIZES[size]
    rows = [row for row in rows if row.counted and low <= row.area < high]
    before = _mean_scores([row.before for row in rows])
    if not refined:
        return SizeSummary(size, len(rows), before, None, None, None, None, None, None)
    results = [row.after for row in rows if row.after is not None]
    iou_change = np.array([row.iou_change for row in rows])
    boundary_change = np.array(
        [after.boundary_iou - row.before.boundary_iou for row, after in zip(rows, results, strict=True)]
    )
    images = [row.image for row in rows]
    better = float(np.mean(iou_change > CHANGE_THRESHOLD)) if rows else math.nan
    worse = float(np.mean(iou_change < -CHANGE_THRESHOLD)) if rows else math.nan
    return SizeSummary(
        size=size,
        count=len(rows),
        before=before,
        after=_mean_scores(results),
        iou_change=bootstrap_mean(iou_change, images, seed=seed),
        boundary_iou_change=bootstrap_mean(boundary_change, images, seed=seed),
        better=better,
        worse=worse,
        unchanged=1 - better - worse,
    )


def bootstrap_mean(values: NDArray[Any], images: Sequence[Hashable], *, seed: int = 0) -> Interval:
    """Mean of the values with its 95 % percentile bootstrap interval, drawing whole images.

    Args:
        values: [instances] float.
        images: image of each.
        seed: of the draws; the same seed gives the same interval.
    """
    if len(values) == 0:
        return Interval(math.nan, math.nan, math.nan)
    numbers: dict[Hashable, int] = {}
    image = np.array([numbers.setdefault(name, len(numbers)) for name in images])  # [instances]
    mean = float(np.mean(values))
    if len(numbers) == 1:
        return Interval(mean, math.nan, math.nan)
    sums = np.bincount(image, values)  # [images]
    counts = np.bincount(image)  # [images]
    generator = np.random.default_rng(seed)
    means = np.empty(_RESAMPLES)
    for resample in range(_RESAMPLES):
        drawn = generator.integers(len(numbers), size=len(numbers))
        means[resample] = sums[drawn].sum() / counts[drawn].sum()
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def _in_step(
    truth: Iterable[Mask],
    coarse: Iterable[Mask],
    refined: Iterable[Mask] | None,
    images: Iterable[Hashable] | None,
) -> Iterator[tuple[int, Mask, Mask, Mask | None, Hashable]]:
    """The sequences side by side; those that are None give None, or the index for the images."""
    end = object()
    given: list[Iterable[Any]] = [
        sequence for sequence in (truth, coarse, refined, images) if sequence is not None
    ]
    for index, entries in enumerate(zip_longest(*given, fillvalue=end)):
        if any(entry is end for entry in entries):
            raise InputError(f"not as many masks to compare as true masks: one list ends at {index}")
        rest: list[Any] = list(entries)
        true_mask, coarse_mask = rest.pop(0), rest.pop(0)
        refined_mask = None if refined is None else rest.pop(0)
        yield index, true_mask, coarse_mask, refined_mask, index if images is None else rest.pop(0)


def _mean_scores(scores: Sequence[MaskScores]) -> MaskScores:
    """Mean of each score; mBA over those that have one."""
    if not scores:
        return MaskScores(math.nan, math.nan, math.nan)
    accuracies = [score.mba for score in scores if not math.isnan(score.mba)]
    return MaskScores(
        iou=float(np.mean([score.iou for score in scores])),
        boundary_iou=float(np.mean([score.boundary_iou for score in scores])),
        mba=float(np.mean(accuracies)) if accuracies else math.nan,
    )
