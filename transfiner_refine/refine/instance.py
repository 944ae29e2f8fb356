"""One instance through the passes of the refiner, in NumPy and OpenCV; an engine runs the step itself.

The whole object first. Where the refined outline is so near to the given one that it is no better evidence, the given
mask stays. Where the new mask's RoI is another one, a second pass follows. A large object is then refined once more in
tiles, for in the RoI its finest cells are several pixels long, and the backbone sees its outline blurred;
CascadePSP (Cheng et al., CVPR 2020) refines locally after globally for the same reason. The first pass builds the
quadtree; the later ones start from a mask that is right in its main lines, where dense labels are as good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from transfiner_refine.masks import MaskWindow
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.refine.engine import Engine, SizeClass, size_class
from transfiner_refine.refine.roi import (
    Roi,
    crop_roi,
    overlap,
    paste_into_roi,
    read_mask,
    resample,
    roi_around,
)

_UNDIVIDED = 0.7  # an axis up to this long, relative to the RoI's longer side, is not divided into tiles
_SHARE = 0.6  # of a longer axis that each of its two tiles covers
#: Share of a tile that overlaps with the other one of its axis.
OVERLAP = 2 - 1 / _SHARE
#: Radius in pixels: a change of one or two pixels' width is never thick, however small the object.
LEAST_THICKNESS = 1.5
#: Share of the refined outline that may run along patches; beyond it little is left to agree about.
MOST_REDRAWN = 0.25
_NEXT = np.ones((3, 3), np.uint8)
StepInput: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.float32]]  # the arrays that ``Engine.step`` takes


@dataclass(frozen=True)
class Look:
    """One refine step on an instance."""

    roi: Roi  # the rectangle of the image that was refined
    coarse_mask: MaskWindow  # the mask that it started from
    size: SizeClass  # the size class of the step
    given: StepInput  # the arrays that the step was given
    is_tile: bool  # the rectangle is a tile of a large object
    refined: MaskWindow  # the probability that came out, a window of the RoI
    relabelled: NDArray[np.bool_]  # [28, 28] bool, the cells that were relabelled


def refine_instance(
    engine: Engine,
    image: NDArray[np.uint8],
    mask: MaskWindow,
    *,
    tiles: bool = True,
    looks: list[Look] | None = None,
) -> MaskWindow:
    """The refined probability in a window of the image; ``mask`` itself where it stays as it is.

    Args:
        engine: runs the step.
        image: H×W×3 uint8 RGB.
        mask: the coarse mask, with at least one value of 0.5 or more; bool, or float in [0, 1].
        tiles: refine large objects once more in tiles.
        looks: receives every step that was made.
    """
    config = engine.config

    def look(coarse: MaskWindow, roi: Roi, *, nodes: bool = False, is_tile: bool = False) -> MaskWindow:
        size = size_class(config, roi.side, nodes=nodes, tiles=tiles)
        given = step_input(image, coarse, roi, size.side(config))
        probability, relabelled = engine.step(size, *given)
        values = paste_into_roi(probability[0], relabelled[0], coarse, roi)
        refined = MaskWindow(values, roi.x0, roi.y0, coarse.image_size)
        if looks is not None:
            looks.append(Look(roi, coarse, size, given, is_tile, refined, relabelled[0]))
        return refined

    roi = roi_around(mask, config)
    refined = look(mask, roi, nodes=True)
    given = read_mask(mask, roi)
    patches = patches_if_agreed(given >= 0.5, refined.values >= 0.5, config)
    if patches is not None:
        return replace(refined, values=np.where(patches, refined.values, given)) if patches.any() else mask
    if refined.area == 0:
        return refined
    moved = roi_around(harden(refined), config)
    if overlap(roi, moved) < config.repeat_overlap:
        roi, refined = moved, look(harden(refined), moved)
    if not tiles or roi.side < config.tiles_from or refined.area == 0:
        return refined
    coarse, windows, labels = harden(refined), tile_rois(roi), []
    for window in windows:
        part = read_mask(coarse, window)
        has_outline = part.min() < part.max()
        labels.append(look(coarse, window, is_tile=True).values if has_outline else None)
    return replace(refined, values=blend_tiles(roi, refined.values, windows, labels))


def step_input(image: NDArray[np.uint8], mask: MaskWindow, roi: Roi, side: int) -> StepInput:
    """The pixels [1, 3, side, side] and the coarse mask [1, 1, side, side] of an RoI, as the step takes them."""
    pixels = np.ascontiguousarray(crop_roi(image, roi, side).transpose(2, 0, 1))
    return pixels[None], resample(read_mask(mask, roi), side, side)[None, None]


def harden(mask: MaskWindow) -> MaskWindow:
    """The mask cut at 0.5."""
    return mask if mask.values.dtype == bool else replace(mask, values=mask.foreground)


def patches_if_agreed(
    given: NDArray[np.bool_], refined: NDArray[np.bool_], config: RefinerConfig
) -> NDArray[np.bool_] | None:
    """Whether two masks agree about the outline, and if so, where they differ by more than an outline's place.

    Args:
        given: [h, w] the mask that was refined, with at least one foreground pixel.
        refined: [h, w] the result.
        config: with ``keep_shift``, ``keep_patch`` and ``keep_rest``.

    Returns:
        [h, w] the patches in which the refined mask holds: an island, a hole, a bump of an outline that is right
        elsewhere. Everywhere else the given mask does. None where the outline moved: all of the refined mask holds.
    """
    changed = given != refined
    side = float(np.sqrt(_extent(given.any(1)) * _extent(given.any(0))))
    before, after = _outline(given), _outline(refined)
    patches = _thick_parts(changed, max(LEAST_THICKNESS, config.keep_patch * side))
    near_patches = cv2.dilate(patches.view(np.uint8), _NEXT).astype(bool)
    if np.count_nonzero(after & near_patches) > MOST_REDRAWN * np.count_nonzero(after):
        return None
    # the smoother of the two outlines: specks would make one as long as one likes
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
    outline: NDArray[np.bool_] = mask & ~cv2.erode(mask.view(np.uint8), _NEXT).astype(bool)
    return outline


def tile_rois(roi: Roi) -> list[Roi]:
    """Two or four tiles that cover an RoI, two of them along each axis that is not much the shorter."""

    def divided(start: int, stop: int) -> list[tuple[int, int]]:
        length = stop - start
        part = round(_SHARE * length)
        whole = length <= _UNDIVIDED * roi.side
        return [(start, stop)] if whole else [(start, start + part), (stop - part, stop)]

    return [Roi(x0, y0, x1, y1) for y0, y1 in divided(roi.y0, roi.y1) for x0, x1 in divided(roi.x0, roi.x1)]


def blend_tiles(
    roi: Roi,
    before: NDArray[np.float32],
    windows: Sequence[Roi],
    labels: Sequence[NDArray[np.float32] | None],
) -> NDArray[np.float32]:
    """One map from those of the tiles, each counting less towards the edges where another one goes on.

    Args:
        roi: the whole.
        before: [roi.height, roi.width], foreground probability after the passes.
        windows: from ``tile_rois``.
        labels: [height, width] of each tile, its new foreground probability; None where ``before`` stays.
    """
    total, weights = np.zeros_like(before), np.zeros_like(before)
    for window, label in zip(windows, labels, strict=True):
        rows = slice(window.y0 - roi.y0, window.y1 - roi.y0)
        columns = slice(window.x0 - roi.x0, window.x1 - roi.x0)
        weight = np.outer(
            edge_weights(rows.start, rows.stop, roi.height),
            edge_weights(columns.start, columns.stop, roi.width),
        )
        total[rows, columns] += weight * (before[rows, columns] if label is None else label)
        weights[rows, columns] += weight
    blended: NDArray[np.float32] = total / weights
    return blended


def edge_weights(start: int, stop: int, whole: int) -> NDArray[np.float32]:
    """Along one axis of a tile: 1, falling towards an edge that is not that of the RoI 0 … whole: [stop - start]."""
    length = stop - start
    slope = max(1.0, length * OVERLAP)
    place = np.arange(length, dtype=np.float32) + 0.5
    weight = np.ones(length, np.float32)
    if start > 0:
        weight = np.minimum(weight, place / slope)
    if stop < whole:
        weight = np.minimum(weight, place[::-1] / slope)
    return weight
