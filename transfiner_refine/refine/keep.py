"""When to leave a mask alone: where the refined outline is so near to the given one that it is no better evidence."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from transfiner_refine.model.config import RefinerConfig

__all__ = ["patches_if_agreed"]

_NEXT = np.ones((3, 3), np.uint8)
_THIN = 1.5  # pixels: a change of one or two pixels' width is never thick, however small the object
# share of the refined outline that may run along patches; beyond it little is left to agree about
_REDRAWN = 0.25


def patches_if_agreed(
    given: NDArray[np.bool_], refined: NDArray[np.bool_], config: RefinerConfig
) -> NDArray[np.bool_] | None:
    """Whether two masks agree about the outline, and if so, where they differ by more than an outline's place.

    Args:
        given: [h, w] the mask that was refined, with at least one foreground pixel.
        refined: [h, w] what came of it.
        config: with ``keep_shift``, ``keep_patch`` and ``keep_rest``.

    Returns:
        [h, w] the patches in which the refined mask holds: an island, a hole, a bump of an outline that is right
        elsewhere. Everywhere else the given mask does. None where the outline moved, so that all of the refined
        mask holds.
    """
    changed = given != refined
    side = float(np.sqrt(_extent(given.any(1)) * _extent(given.any(0))))
    before, after = _outline(given), _outline(refined)
    patches = _thick_parts(changed, max(_THIN, config.keep_patch * side))
    near_patches = cv2.dilate(patches.view(np.uint8), _NEXT).astype(bool)
    if np.count_nonzero(after & near_patches) > _REDRAWN * np.count_nonzero(after):
        return None
    # the smoother of the two outlines: that of a mask full of specks is as long as one likes
    length = float(max(1, min(int(np.count_nonzero(before)), int(np.count_nonzero(after)))))
    shift = np.count_nonzero(changed) / length / side
    rest = np.count_nonzero(changed & ~patches) / length / side
    return patches if shift <= config.keep_shift or rest <= config.keep_rest else None


def _thick_parts(mask: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """The parts of a mask around the discs of more than this radius that fit into it: [h, w]."""
    framed = np.pad(mask.view(np.uint8), 1)
    cores = cv2.distanceTransform(framed, cv2.DIST_L2, 5) > radius
    if not cores.any():
        return np.zeros_like(mask)
    near = cv2.distanceTransform((~cores).view(np.uint8), cv2.DIST_L2, 5) <= 2 * radius
    parts: NDArray[np.bool_] = mask & near[1:-1, 1:-1]
    return parts


def _extent(occupied: Any) -> int:
    """Pixels from the first to the last one set."""
    return int(np.ptp(np.flatnonzero(occupied))) + 1


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Foreground pixels beside the background: [h, w]."""
    inner = cv2.erode(mask.view(np.uint8), _NEXT).astype(bool)
    outline: NDArray[np.bool_] = mask & ~inner
    return outline
