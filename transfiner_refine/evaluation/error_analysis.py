"""Where a refiner's gain is made and lost: does it look where the mask is wrong, and what does it make of it?

After Ke et al. 2022, table 1: the share of a coarse mask's wrong pixels that lie inside the detected nodes, the share
of the region the nodes cover, and the oracle, that is the mask with the truth inside the nodes. The oracle is the most
the decoder could reach with this detector; what is between it and 100 is the detector's, the rest the decoder's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.evaluation.matched import by_size
from transfiner_refine.evaluation.overlap import (
    BOUNDARY_RATIO,
    AnyMask,
    Fit,
    as_window,
    boundary_width,
    common_window,
    crop_fit,
    mean_scores,
)
from transfiner_refine.masks import Mask
from transfiner_refine.refiner import BaseRefiner
from transfiner_refine.trace import trace


class LevelRow(NamedTuple):
    """One level of an instance's quadtree (first pass): nodes, pixels they cover, coarse-wrong pixels among these."""

    grid: int
    nodes: int
    covered: int
    wrong_inside: int


class ErrorRow(NamedTuple):
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


class ErrorAnalysis(NamedTuple):
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
    rows = tuple(
        instance_errors(refiner, image, truth, coarse, dilation_ratio=dilation_ratio)
        for image, truth, coarse in cases
        if as_window(coarse).area
    )
    sizes = {size: _summary(size, of) for size, of in by_size(rows).items()}
    grids = sorted({level.grid for row in rows for level in row.levels})
    return ErrorAnalysis(weights, rows, sizes, tuple(_level(grid, rows) for grid in grids))


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
    real, before, after, inside, *nodes = common_window(*windows)
    oracle = np.where(inside, real, before)
    width = boundary_width(windows[0].image_size, dilation_ratio)
    wrong, wrong_after = before != real, after != real

    def pixels(mask: NDArray[np.bool_]) -> int:
        return int(np.count_nonzero(mask))

    return ErrorRow(
        area=windows[0].area,
        region=found.region.area,
        covered=pixels(inside > 0),
        wrong=pixels(wrong),
        wrong_inside=pixels(wrong & (inside > 0)),
        fixed=pixels(wrong & ~wrong_after),
        broken=pixels(wrong_after & ~wrong),
        before=crop_fit(real, before, width=width),
        after=crop_fit(real, after, width=width),
        oracle=crop_fit(real, oracle, width=width),
        levels=tuple(
            LevelRow(level.grid, len(level), pixels(crop > 0), pixels(wrong & (crop > 0)))
            for level, crop in zip(step.levels, nodes, strict=True)
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
        before=mean_scores(Fit, [row.before for row in rows]),
        after=mean_scores(Fit, [row.after for row in rows]),
        oracle=mean_scores(Fit, [row.oracle for row in rows]),
    )


def _level(grid: int, rows: Sequence[ErrorRow]) -> LevelSummary:
    levels = [level for row in rows for level in row.levels if level.grid == grid]
    return LevelSummary(
        grid=grid,
        count=len(levels),
        nodes=sum(level.nodes for level in levels) / len(levels),
        wrong_inside=_share(sum(level.wrong_inside for level in levels), sum(row.wrong for row in rows)),
        area=_share(sum(level.covered for level in levels), sum(row.region for row in rows)),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
