"""How alike two masks are: mask IoU, boundary IoU (Cheng et al. 2021), boundary accuracy (Cheng et al. 2020).

Every measure works on the crop that holds the foreground, so its cost follows the object, not the image. Two empty
masks are equal: their IoU is 1. Masks of images of different sizes raise ``InputError``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.masks import Mask, MaskWindow

AnyMask: TypeAlias = "NDArray[Any] | MaskWindow | Mask"
"""A binary mask: [H, W] bool (or 0/1 integers, or floats cut at 0.5), the window of one, or its runs."""

BOUNDARY_RATIO = 0.02
"""Width of the boundary band as a share of the image's diagonal; Cheng et al. 2021, for COCO and LVIS."""

_MBA_STEPS = 5  # number of band widths that are averaged; CascadePSP, eval_post
_MBA_REACH = 300  # the widest band is (width + height) / 300 pixels; the same source


class Fit(NamedTuple):
    """How well a mask fits the truth: IoU and boundary IoU, in [0, 1]."""

    iou: float
    boundary_iou: float


class MaskScores(NamedTuple):
    """How well a mask fits its true mask: shares in [0, 1]; mBA is nan where the true mask has no outline."""

    iou: float
    boundary_iou: float
    mba: float


Scores = TypeVar("Scores", Fit, MaskScores)


def mean_scores(kind: type[Scores], scores: Sequence[Scores]) -> Scores:
    """Mean of each score over those that have one; nan where none has."""
    columns = ([value for value in column if not math.isnan(value)] for column in zip(*scores, strict=True))
    means = [float(np.mean(column)) if column else math.nan for column in columns]
    return kind(*(means or [math.nan] * len(kind._fields)))


def as_window(mask: AnyMask) -> MaskWindow:
    """The mask as a window of bool that fits its foreground."""
    if isinstance(mask, Mask):
        return mask.decode()
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2:
            raise InputError(f"a mask has 2 axes, this one has shape {mask.shape}")
        mask = MaskWindow(mask, 0, 0, (mask.shape[0], mask.shape[1]))
    return mask.hard().tight()


def common_window(*masks: MaskWindow, margin: int = 0) -> list[NDArray[np.uint8]]:
    """Tight windows of one image as 0/1 crops of the smallest window that holds all their foreground.

    ``margin`` pixels are added on every side, as far as the image reaches. Gives an [h, w] uint8 array for each
    mask, all of one shape; 0×0 if all are empty.
    """
    size = masks[0].image_size
    if any(mask.image_size != size for mask in masks):
        sizes = " and ".join(f"{mask.image_size[1]}×{mask.image_size[0]}" for mask in masks)
        raise InputError(f"masks of different image sizes cannot be compared: {sizes}")
    filled = [mask for mask in masks if mask.values.size]
    if not filled:
        return [np.zeros((0, 0), np.uint8) for _ in masks]
    x0 = max(min(mask.x for mask in filled) - margin, 0)
    y0 = max(min(mask.y for mask in filled) - margin, 0)
    x1 = min(max(mask.x + mask.values.shape[1] for mask in filled) + margin, size[1])
    y1 = min(max(mask.y + mask.values.shape[0] for mask in filled) + margin, size[0])
    crops = []
    for mask in masks:
        crop = np.zeros((y1 - y0, x1 - x0), np.uint8)
        if mask.values.size:
            replace(mask, x=mask.x - x0, y=mask.y - y0).of(crop)[...] = mask.values
        crops.append(crop)
    return crops


def crop_iou(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Intersection over union of two 0/1 crops of one window; 1 where both are empty."""
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 1.0


def mask_iou(a: AnyMask, b: AnyMask) -> float:
    """Intersection over union of two masks of one image, in [0, 1]."""
    return crop_iou(*common_window(as_window(a), as_window(b)))


def boundary_width(image_size: tuple[int, int], dilation_ratio: float = BOUNDARY_RATIO) -> int:
    """Width d of the boundary band in pixels: max(1, round(ratio × diagonal)); Cheng et al. 2021, §4.

    Args:
        image_size: (height, width), pixels.
        dilation_ratio: share of the diagonal; 0.02 for COCO and LVIS, 0.005 for Cityscapes.
    """
    # sqrt of the sum as the reference has it: hypot differs in the last bit, which can tip the rounding
    return max(1, round(dilation_ratio * math.sqrt(image_size[0] ** 2 + image_size[1] ** 2)))


def boundary(mask: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The pixels of an [h, w] 0/1 mask within ``width`` pixels (chessboard distance) of what is outside it.

    What lies beyond the array counts as outside. That is the definition at the image's border, and it holds
    at a crop's border too if the crop has all the foreground, so any such crop gives the same boundary.
    """
    if mask.size == 0:
        return mask
    # d rounds of a 3×3 erosion are one by a (2d + 1)² square, which takes OpenCV a time independent of d
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    eroded = cv2.erode(mask, square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask - np.asarray(eroded, np.uint8)


def crop_fit(a: NDArray[np.uint8], b: NDArray[np.uint8], *, width: int) -> Fit:
    """IoU and boundary IoU of two 0/1 crops that hold all their foreground; ``width`` is the band's, in pixels."""
    return Fit(crop_iou(a, b), crop_iou(boundary(a, width), boundary(b, width)))


def mask_fit(a: AnyMask, b: AnyMask, *, dilation_ratio: float = BOUNDARY_RATIO) -> Fit:
    """IoU and boundary IoU (Cheng et al. 2021, eq. 2) of two masks of one image.

    ``dilation_ratio`` is the width of the band as a share of the image's diagonal.
    """
    first, second = as_window(a), as_window(b)
    width = boundary_width(first.image_size, dilation_ratio)
    return crop_fit(*common_window(first, second), width=width)


def boundary_iou(a: AnyMask, b: AnyMask, *, dilation_ratio: float = BOUNDARY_RATIO) -> float:
    """Boundary IoU of two masks of one image, in [0, 1], as for ``mask_fit``."""
    return mask_fit(a, b, dilation_ratio=dilation_ratio).boundary_iou


def mean_boundary_accuracy(truth: AnyMask, mask: AnyMask) -> float:
    """mBA: pixel accuracy near the truth's outline, mean over five band widths; CascadePSP (CVPR 2020).

    The bands are the morphological gradients of the truth by discs of radius 1 + ⌊(R − 1) · i / 5⌋ for
    i = 0 … 4, R = (width + height) / 300. Unlike for boundary IoU, the image's border is no outline here.

    Returns:
        accuracy in [0, 1]; nan where the truth has no outline (empty, or the whole image).
    """
    true_window, window = as_window(truth), as_window(mask)
    reach = sum(true_window.image_size) / _MBA_REACH
    radii = [1 + int((reach - 1) / _MBA_STEPS * step) for step in range(_MBA_STEPS)]
    true_crop, crop = common_window(true_window, window, margin=max(radii) + 1)
    if true_window.values.size == 0:
        return math.nan
    wrong = true_crop != crop
    accuracy = {}
    for radius in set(radii):
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        band = np.asarray(cv2.morphologyEx(true_crop, cv2.MORPH_GRADIENT, disc)) > 0
        pixels = int(np.count_nonzero(band))
        if pixels == 0:
            return math.nan
        accuracy[radius] = 1 - int(np.count_nonzero(wrong & band)) / pixels
    return sum(accuracy[radius] for radius in radii) / len(radii)
