"""One instance through the passes of the refiner, in NumPy and OpenCV; the step itself runs in an engine.

The whole object first. Where the outcome is so near to the given mask that it is no better evidence, the given mask
stays. Where the new mask's RoI is another one, a second pass looks at that. A large object is then refined once more in
close-ups. The first look builds the quadtree; the later ones start from a mask that is right in its main lines, where
dense labels are as good.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.masks import MaskWindow
from transfiner_refine.refine.close_up import blend_close_ups, close_up_windows
from transfiner_refine.refine.engine import Engine, SizeClass, size_class
from transfiner_refine.refine.keep import patches_if_agreed
from transfiner_refine.refine.roi import (
    Roi,
    crop_roi,
    overlap,
    paste_into_roi,
    read_mask,
    resample,
    roi_around,
)

__all__ = ["Look", "harden", "refine_instance", "step_input"]


@dataclass(frozen=True)
class Look:
    """One refine step on an instance.

    Attributes:
        roi: the rectangle of the image it looked at.
        coarse_mask: the mask it started from.
        size: the size class it ran in.
        close_up: it looked at a part of a large object.
        refined: the probability that came out, a window of the RoI.
        relabelled: [28, 28] bool, the cells that were labelled anew.
    """

    roi: Roi
    coarse_mask: MaskWindow
    size: SizeClass
    close_up: bool
    refined: MaskWindow
    relabelled: NDArray[np.bool_]


def refine_instance(
    engine: Engine,
    image: NDArray[np.uint8],
    mask: MaskWindow,
    *,
    close_ups: bool = True,
    looks: list[Look] | None = None,
) -> MaskWindow:
    """Refines one mask.

    Args:
        engine: runs the step.
        image: H×W×3 uint8 RGB.
        mask: the coarse mask, with at least one value of 0.5 or more; bool, or float in [0, 1].
        close_ups: look at large objects once more, part by part.
        looks: receives every step that was made.

    Returns:
        the probability in a window of the image; ``mask`` itself where it stays as it is.
    """
    config = engine.config

    def look(coarse: MaskWindow, roi: Roi, *, nodes: bool = False, close_up: bool = False) -> MaskWindow:
        size = size_class(config, roi.side, nodes=nodes, close_ups=close_ups)
        probability, relabelled = engine.step(size, *step_input(image, coarse, roi, size.side(config)))
        values = paste_into_roi(probability[0], relabelled[0], coarse, roi)
        refined = MaskWindow(values, roi.x0, roi.y0, coarse.image_size)
        if looks is not None:
            looks.append(Look(roi, coarse, size, close_up, refined, relabelled[0]))
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
    if not close_ups or roi.side < config.close_up_from or refined.area == 0:
        return refined
    coarse = harden(refined)
    windows = close_up_windows(roi)
    labels = [
        look(coarse, window, close_up=True).values if _has_outline(read_mask(coarse, window)) else None
        for window in windows
    ]
    return replace(refined, values=blend_close_ups(roi, refined.values, windows, labels))


def step_input(
    image: NDArray[np.uint8], mask: MaskWindow, roi: Roi, side: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The pixels [1, 3, side, side] and the coarse mask [1, 1, side, side] of an RoI, as the step takes them."""
    pixels = np.ascontiguousarray(crop_roi(image, roi, side).transpose(2, 0, 1))
    return pixels[None], resample(read_mask(mask, roi), side, side)[None, None]


def harden(mask: MaskWindow) -> MaskWindow:
    """The mask cut at 0.5."""
    return mask if mask.values.dtype == bool else replace(mask, values=mask.values >= 0.5)


def _has_outline(mask: NDArray[np.float32]) -> bool:
    """Whether there is foreground as well as background in a part of a mask."""
    return bool(mask.min() < mask.max())
