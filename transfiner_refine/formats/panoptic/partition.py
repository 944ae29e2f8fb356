"""Refined things back into a partition of the image: every pixel in exactly one segment, as it was."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.formats.id_map import paint
from transfiner_refine.masks import Mask

__all__ = ["Partition", "repartition"]


@dataclass(frozen=True)
class Partition:
    """A partition after refinement.

    Attributes:
        ids: [H, W] segment ids.
        overlap_pixels: pixels that two or more refined things, or one and a segment that keeps its own, claimed.
        covered: ids of things that have their coarse mask, because others left nothing of the refined one.
    """

    ids: NDArray[np.uint32]
    overlap_pixels: int
    covered: tuple[int, ...]


def repartition(
    coarse: NDArray[np.uint32], refined: Sequence[tuple[int, Mask]], yielding: Collection[int]
) -> Partition:
    """Puts refined masks into a partition; no segment and no pixel is lost.

    * Things that were not refined, and crowds, keep every pixel and get none.
    * Stuff and unlabelled pixels (id 0) are the background: they yield to refined masks, but stuff of which
      nothing would be left keeps its pixels.
    * Among refined masks the earlier wins a pixel.
    * A pixel that a thing gives up and no other refined one claims goes to the nearest background: an outline
      that ran into the road gives the pixels back to the road, one that ran into nothing to nothing. In an image
      without any background, the thing keeps it.

    Args:
        coarse: [H, W] ids, 0 = unlabelled.
        refined: (id, mask) of the refined things, the most important first.
        yielding: ids of stuff.
    """
    present = set(np.unique(coarse).tolist())
    firm = set[int]()
    while True:
        yields = np.isin(coarse, [value for value in yielding if value not in firm])
        painted = paint(np.where(yields, 0, coarse), refined)
        ids = painted.values
        unclaimed = ids == 0
        given_up = unclaimed & (coarse != 0) & ~yields
        ids[unclaimed] = np.where(given_up, 0, coarse)[unclaimed]
        background = np.isin(coarse, [0, *yielding]) & (ids == coarse)
        _fill(ids, given_up, background, coarse)
        lost = present - set(np.unique(ids).tolist()) - {0}
        if not lost - firm:
            return Partition(ids, painted.overlap_pixels, painted.covered)
        firm |= lost


def _fill(
    ids: NDArray[np.uint32],
    given_up: NDArray[np.bool_],
    sources: NDArray[np.bool_],
    coarse: NDArray[np.uint32],
) -> None:
    """Gives each pixel of ``given_up`` the id of the nearest pixel of ``sources``; its coarse id if there is none."""
    if not given_up.any():
        return
    if not sources.any():
        ids[given_up] = coarse[given_up]
        return
    import cv2  # here, because a process that decodes has no use for it

    _, nearest = cv2.distanceTransformWithLabels(
        (~sources).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    owner = np.zeros(int(nearest.max()) + 1, ids.dtype)
    owner[nearest[sources]] = ids[sources]
    ids[given_up] = owner[nearest[given_up]]
