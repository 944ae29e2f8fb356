"""Simulated coarse masks: what detectors, labelling tools and old networks do to a true mask.

Each error is a function (mask, side, random generator) → mask on a padded canvas; ``simulate_coarse`` draws a few.
The kinds follow what was seen in real outputs: the low resolution of mask heads, boxes that cut, parts missed or
added, regions of the image missed or added (``image_errors.py``), specks and holes, loose polygons, masks that are
shifted, too thin or too fat, and wobbly outlines.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from transfiner_refine.masks import MaskWindow
from transfiner_refine.training.image_errors import Segments

__all__ = ["near_side", "outline_point", "simulate_coarse"]

Mask = NDArray[np.uint8]  # [h, w], 0 or 1
_PAD = 0.35  # canvas around the object's box, as a share of its longer side
_LEAST_IOU = 0.4
_LEAST_SEGMENTED = 12  # pixels: in a smaller box there are no regions to speak of


def simulate_coarse(
    truth: MaskWindow, rng: np.random.Generator, image: NDArray[np.uint8] | None = None
) -> MaskWindow:
    """A coarse version of a true mask.

    Args:
        truth: a bool mask with at least one foreground pixel.
        rng: the only source of randomness.
        image: H×W×3 uint8, for errors that follow the image's regions; None for others only.

    Returns:
        bool mask whose IoU with the truth is at least 0.4; the truth itself in about one case of
        six, so that a refiner also learns to leave a good mask alone.
    """
    tight = truth.tight()
    h, w = tight.values.shape
    pad = int(np.ceil(_PAD * max(h, w))) + 2
    true = np.ascontiguousarray(np.pad(tight.values.astype(np.uint8), pad))  # RLE decodes column-major
    side = float(np.sqrt(h * w))
    segments = None
    if image is not None and min(h, w) >= _LEAST_SEGMENTED:
        segments = Segments(_patch(image, tight, pad), rng)
    for _ in range(4):
        coarse = _degrade(true, side, pad, rng, segments)
        union = np.count_nonzero(true | coarse)
        if np.count_nonzero(true & coarse) >= _LEAST_IOU * union:
            break
    else:
        coarse = true
    return _clip(coarse, tight.x - pad, tight.y - pad, truth.image_size) or truth


def _clip(mask: Mask, x: int, y: int, image_size: tuple[int, int]) -> MaskWindow | None:
    """The part of a canvas at (x, y) that lies inside the image; None if nothing is left."""
    height, width = image_size
    x0, y0, x1, y1 = max(0, x), max(0, y), min(width, x + mask.shape[1]), min(height, y + mask.shape[0])
    inside = mask[y0 - y : y1 - y, x0 - x : x1 - x].astype(bool)
    return MaskWindow(inside, x0, y0, image_size) if inside.any() else None


def _patch(image: NDArray[np.uint8], tight: MaskWindow, pad: int) -> NDArray[np.uint8]:
    """The canvas's part of the image; beyond the image its rim goes on."""
    h, w = tight.values.shape
    rows = np.clip(np.arange(tight.y - pad, tight.y + h + pad), 0, image.shape[0] - 1)
    columns = np.clip(np.arange(tight.x - pad, tight.x + w + pad), 0, image.shape[1] - 1)
    return image[rows[:, None], columns]


def _degrade(true: Mask, side: float, pad: int, rng: np.random.Generator, segments: Segments | None) -> Mask:
    if rng.random() < 0.2:  # already right, or all but
        return _thin_or_fat(true, side, rng, 0.0, 0.01) if rng.random() < 0.5 else true
    if rng.random() < 0.02:  # nothing but a box
        box = np.zeros_like(true)
        box[pad:-pad, pad:-pad] = 1
        return box
    mask = true
    if segments is not None:
        voted = rng.random() < 0.3
        mask = segments.voted(mask, rng) if voted else segments.swapped(mask, rng)
        if rng.random() < 0.5:  # as a network of high resolution leaves it
            return mask
    if rng.random() < 0.06:
        mask = _speckle(mask, side, rng)
    if rng.random() < 0.06:
        mask = _cut(mask, pad, rng)
    if rng.random() < 0.04:
        mask = _lose_part(mask, rng)
    if rng.random() < 0.15:
        mask = _smooth(mask, side, rng)
    if rng.random() < 0.25:
        mask = _deform(mask, side, rng)
    if rng.random() < 0.20:
        mask = _wobble(mask, side, rng)
    if rng.random() < 0.15:
        mask = _polygonise(mask, side, rng)
    if rng.random() < 0.70:
        mask = _quantise(mask, pad, rng)
    if rng.random() < 0.55:
        mask = _shift(mask, side, rng)
    for _ in range(int(rng.choice(4, p=(0.35, 0.4, 0.15, 0.1)))):
        mask = _bump(mask, side, rng)
    if rng.random() < 0.30:
        mask = _thin_or_fat(mask, side, rng, 0.01, 0.05)
    return mask


def _quantise(mask: Mask, pad: int, rng: np.random.Generator) -> Mask:
    """A mask head's S×S grid over a box: area average, bilinear back, threshold."""
    cells = int(np.exp(rng.uniform(np.log(12), np.log(64))))
    h, w = mask.shape
    slack = int(rng.uniform(0.0, 0.6) * pad)  # the head's box seldom fits the object exactly
    y0, y1, x0, x1 = pad - slack, h - pad + slack, pad - slack, w - pad + slack
    crop = mask[y0:y1, x0:x1].astype(np.float32)
    grid = cv2.resize(crop, (cells, cells), interpolation=cv2.INTER_AREA)
    back = cv2.resize(grid, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
    out = np.zeros_like(mask)
    out[y0:y1, x0:x1] = back >= rng.uniform(0.35, 0.65)
    return out


def _shift(mask: Mask, side: float, rng: np.random.Generator) -> Mask:
    """Moved by up to 4 % and scaled by up to 5 %."""
    h, w = mask.shape
    scale = rng.uniform(0.95, 1.05, 2)
    move = rng.uniform(-0.04, 0.04, 2) * side
    centre = np.array((w, h)) / 2
    matrix = np.array(
        [
            [scale[0], 0, centre[0] * (1 - scale[0]) + move[0]],
            [0, scale[1], centre[1] * (1 - scale[1]) + move[1]],
        ]
    )
    moved: Mask = cv2.warpAffine(mask, matrix, (w, h), flags=cv2.INTER_NEAREST)
    return moved


def outline_point(mask: Mask, rng: np.random.Generator) -> tuple[int, int] | None:
    """A random foreground pixel (row, column) of [h, w] with background beside it; None if there is none."""
    edge = np.flatnonzero(mask & (cv2.erode(mask, np.ones((3, 3), np.uint8)) == 0))
    if len(edge) == 0:
        return None
    row, column = divmod(int(edge[rng.integers(len(edge))]), mask.shape[1])
    return row, column


def _bump(mask: Mask, side: float, rng: np.random.Generator) -> Mask:
    """An ellipse added or bitten off at the outline."""
    point = outline_point(mask, rng)
    if point is None:
        return mask
    axes = [max(1, int(rng.uniform(0.04, 0.13) * side)) for _ in range(2)]
    out = mask.copy()
    cv2.ellipse(out, point[::-1], axes, rng.uniform(0, 180), 0, 360, int(rng.random() < 0.5), -1)
    return out


def _speckle(mask: Mask, side: float, rng: np.random.Generator) -> Mask:
    """Islands beside the object and holes in it, as labelling pixel by pixel leaves them."""
    out, (h, w) = mask.copy(), mask.shape
    for _ in range(int(rng.integers(1, 5))):
        centre = (int(rng.integers(w)), int(rng.integers(h)))
        axes = [max(1, int(rng.uniform(0.01, 0.06) * side)) for _ in range(2)]
        value = 1 - int(mask[centre[1], centre[0]])
        cv2.ellipse(out, centre, axes, rng.uniform(0, 180), 0, 360, value, -1)
    return out


def _thin_or_fat(mask: Mask, side: float, rng: np.random.Generator, least: float, most: float) -> Mask:
    radius = round(rng.uniform(least, most) * side)
    if radius < 1:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    changed: Mask = cv2.erode(mask, disc) if rng.random() < 0.5 else cv2.dilate(mask, disc)
    return changed


def _cut(mask: Mask, pad: int, rng: np.random.Generator) -> Mask:
    """A detector's box that is too small on one or two sides."""
    out, (h, w) = mask.copy(), mask.shape
    for _ in range(int(rng.integers(1, 3))):
        share = rng.uniform(0.02, 0.14)
        edge = rng.integers(4)
        rows, columns = pad + int(share * (h - 2 * pad)), pad + int(share * (w - 2 * pad))
        if edge == 0:
            out[:rows] = 0
        elif edge == 1:
            out[h - rows :] = 0
        elif edge == 2:
            out[:, :columns] = 0
        else:
            out[:, w - columns :] = 0
    return out


def _lose_part(mask: Mask, rng: np.random.Generator) -> Mask:
    """Everything beyond a straight line through the object's rim is missed: an arm, a head, a wheel."""
    return mask * near_side(mask, rng, (0.75, 0.95)) if mask.any() else mask


def near_side(
    mask: NDArray[Any], rng: np.random.Generator, share: tuple[float, float], bend: float = 0.0
) -> NDArray[np.bool_]:
    """The side of a random line that holds a share of a mask's foreground: [h, w] bool.

    Args:
        mask: [h, w] with at least one foreground pixel.
        rng: draws the line.
        share: least and most of the foreground to hold.
        bend: how far the line may bend, at most, relative to the canvas.
    """
    h, w = mask.shape
    angle = rng.uniform(0, 2 * np.pi)
    x, y = (np.arange(w) - w / 2)[None], (np.arange(h) - h / 2)[:, None]
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.sin(angle) * x - np.cos(angle) * y
    along = along + rng.uniform(-bend, bend) / max(h, w) * across**2
    end = np.quantile(along[mask > 0], rng.uniform(*share), method="higher")
    near: NDArray[np.bool_] = along <= end
    return near


def _smooth(mask: Mask, side: float, rng: np.random.Generator) -> Mask:
    """Thin parts and corners vanish."""
    blurred = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(0.5, rng.uniform(0.01, 0.05) * side))
    return (blurred >= 0.5).astype(np.uint8)


def _field(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise of unit size: [h, w]."""
    cells = int(rng.integers(4, 13))
    noise = rng.standard_normal((cells, cells)).astype(np.float32)
    field: NDArray[np.float32] = cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return field


def _deform(mask: Mask, side: float, rng: np.random.Generator) -> Mask:
    """An outline drawn from memory: pushed about by a smooth displacement."""
    h, w = mask.shape
    reach = rng.uniform(0.01, 0.03) * side
    x = np.arange(w, dtype=np.float32)[None] + reach * _field((h, w), rng)
    y = np.arange(h, dtype=np.float32)[:, None] + reach * _field((h, w), rng)
    moved: Mask = cv2.remap(mask, x, y, cv2.INTER_NEAREST)
    return moved


def _wobble(mask: Mask, side: float, rng: np.random.Generator) -> Mask:
    """An unsure network: smooth noise added to a blurred mask before the threshold."""
    blurred = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(0.5, rng.uniform(0.02, 0.06) * side))
    return (blurred + rng.uniform(0.08, 0.25) * _field(mask.shape, rng) >= 0.5).astype(np.uint8)


def _polygonise(mask: Mask, side: float, rng: np.random.Generator) -> Mask:
    """A hand-drawn polygon with few corners; holes are filled."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    tolerance = rng.uniform(0.005, 0.03) * side
    polygons = [cv2.approxPolyDP(contour, tolerance, True) for contour in contours]
    out = np.zeros_like(mask)
    cv2.fillPoly(out, [polygon for polygon in polygons if len(polygon) >= 3], 1)
    return out
