"""Where a refiner's gain is made and lost: does it look where the mask is wrong, and what does it make of it?

After Ke et al. 2022, table 1: the share of a coarse mask's wrong pixels that lie inside the detected nodes, the share
of the region the nodes cover, and the oracle, that is the mask with the truth inside the nodes. The oracle is the most
the decoder could reach with this detector; what is between it and 100 is the detector's, the rest the decoder's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.evaluation.matched import SIZES
from transfiner_refine.evaluation.overlap import (
    BOUNDARY_RATIO,
    AnyMask,
    as_window,
    boundary,
    boundary_width,
    common_window,
    crop_iou,
)
from transfiner_refine.masks import Mask
from transfiner_refine.refiner import BaseRefiner
from transfiner_refine.trace import trace

__all__ = ["ErrorAnalysis", "ErrorRow", "ErrorSummary", "LevelSummary", "analyse_errors", "instance_errors"]


@dataclass(frozen=True)
class Fit:
    """How well a mask fits the truth: IoU and boundary IoU, in [0, 1]."""

    iou: float
    boundary_iou: float


@dataclass(frozen=True)
class LevelRow:
    """One level of an instance's quadtree (first pass): nodes, pixels they cover, coarse-wrong pixels among these."""

    grid: int
    nodes: int
    covered: int
    wrong_inside: int


@dataclass(frozen=True)
class ErrorRow:
    """One instance; all counts are pixels of the image."""

    area: int  # of the true mask
    region: int  # of what the network looked at (the coarse mask's box with its margin), in all passes
    covered: int  # relabelled, by nodes or by the dense decoder, in all passes
    wrong: int  # where the coarse mask differs from the truth
    wrong_inside: int  # of these, relabelled
    fixed: int  # wrong before, right after
    broken: int  # right before, wrong after
    before: Fit
    after: Fit
    oracle: Fit  # of the coarse mask with the truth where relabelled
    levels: tuple[LevelRow, ...]  # coarse to fine


@dataclass(frozen=True)
class ErrorSummary:
    """One size class: shares of all its pixels together, means of the fits over its instances; nan where empty."""

    size: str  # key of SIZES
    count: int
    wrong_inside: float  # share of the coarse masks' wrong pixels that were relabelled
    area: float  # share of the regions' pixels that were
    fixed: float  # share of the wrong pixels that refining set right
    broken: float  # pixels refining set wrong, as a share of the pixels that were wrong
    before: Fit
    after: Fit
    oracle: Fit


@dataclass(frozen=True)
class LevelSummary:
    """One level: instances that reach it, mean nodes of these, and shares of all instances' pixels."""

    grid: int
    count: int
    nodes: float
    wrong_inside: float
    area: float


@dataclass(frozen=True)
class ErrorAnalysis:
    """The analysis of one set of weights: of each instance, by key of ``SIZES``, and by level, coarse to fine."""

    weights: str
    rows: tuple[ErrorRow, ...]
    sizes: dict[str, ErrorSummary]
    levels: tuple[LevelSummary, ...]


def analyse_errors(
    refiner: BaseRefiner,
    cases: Iterable[tuple[NDArray[np.uint8], AnyMask, AnyMask]],
    *,
    weights: str = "",
    dilation_ratio: float = BOUNDARY_RATIO,
) -> ErrorAnalysis:
    """Refines each coarse mask and compares where the network looked with where the mask was wrong.

    Args:
        refiner: the refiner to analyse.
        cases: (image H×W×3 uint8 RGB, true mask, coarse mask) of each instance; read once. Empty coarse masks, which
            are never refined, are left out.
        weights: a name for the output.
        dilation_ratio: width of the boundary band as a share of the image's diagonal.

    Raises:
        InputError: a mask does not fit its image.
    """
    rows = [
        instance_errors(refiner, image, truth, coarse, dilation_ratio=dilation_ratio)
        for image, truth, coarse in cases
        if as_window(coarse).area
    ]
    sizes = {
        size: _summary(size, [r for r in rows if low <= r.area < high]) for size, (low, high) in SIZES.items()
    }
    return ErrorAnalysis(weights, tuple(rows), sizes, _levels(rows))


def instance_errors(
    refiner: BaseRefiner,
    image: NDArray[np.uint8],
    truth: AnyMask,
    coarse: AnyMask,
    *,
    dilation_ratio: float = BOUNDARY_RATIO,
) -> ErrorRow:
    """The analysis of one instance, as for ``analyse_errors``; soft values of ``coarse`` are used as they are.

    Raises:
        InputError: the coarse mask is empty or does not fit the image.
    """
    found = trace(refiner, image, coarse.decode() if isinstance(coarse, Mask) else coarse)
    step = found.passes[0]
    covered = [found.relabelled_pixels, *(step.covered(level) for level in range(len(step.levels)))]
    windows = [as_window(mask) for mask in (truth, coarse, found.result, *covered)]
    crops = common_window(*windows)
    real, before, after, inside = (crop.astype(bool) for crop in crops[:4])
    wrong = before != real
    width = boundary_width(windows[0].image_size, dilation_ratio)

    def fit(mask: NDArray[np.bool_]) -> Fit:
        pair = real.astype(np.uint8), mask.astype(np.uint8)
        return Fit(crop_iou(*pair), crop_iou(*(boundary(crop, width) for crop in pair)))

    return ErrorRow(
        area=windows[0].area,
        region=found.region.area,
        covered=int(inside.sum()),
        wrong=int(wrong.sum()),
        wrong_inside=int((wrong & inside).sum()),
        fixed=int((wrong & (after == real)).sum()),
        broken=int((~wrong & (after != real)).sum()),
        before=fit(before),
        after=fit(after),
        oracle=fit(np.where(inside, real, before)),
        levels=tuple(
            LevelRow(level.grid, len(level), int(crop.sum()), int((wrong & (crop > 0)).sum()))
            for level, crop in zip(step.levels, crops[4:], strict=True)
        ),
    )


def _summary(size: str, rows: Sequence[ErrorRow]) -> ErrorSummary:
    wrong = sum(row.wrong for row in rows)
    return ErrorSummary(
        size=size,
        count=len(rows),
        wrong_inside=_share(sum(row.wrong_inside for row in rows), wrong),
        area=_share(sum(row.covered for row in rows), sum(row.region for row in rows)),
        fixed=_share(sum(row.fixed for row in rows), wrong),
        broken=_share(sum(row.broken for row in rows), wrong),
        before=_mean([row.before for row in rows]),
        after=_mean([row.after for row in rows]),
        oracle=_mean([row.oracle for row in rows]),
    )


def _levels(rows: Sequence[ErrorRow]) -> tuple[LevelSummary, ...]:
    """The levels that any instance reaches."""
    wrong, region = sum(row.wrong for row in rows), sum(row.region for row in rows)
    summaries = []
    for grid in sorted({level.grid for row in rows for level in row.levels}):
        levels = [level for row in rows for level in row.levels if level.grid == grid]
        summaries.append(
            LevelSummary(
                grid=grid,
                count=len(levels),
                nodes=sum(level.nodes for level in levels) / len(levels),
                wrong_inside=_share(sum(level.wrong_inside for level in levels), wrong),
                area=_share(sum(level.covered for level in levels), region),
            )
        )
    return tuple(summaries)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean(fits: Sequence[Fit]) -> Fit:
    if not fits:
        return Fit(math.nan, math.nan)
    return Fit(float(np.mean([fit.iou for fit in fits])), float(np.mean([fit.boundary_iou for fit in fits])))
