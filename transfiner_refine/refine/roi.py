"""Between an image and the network: the RoI around a coarse mask, its resized pixels, and the labels' way back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from transfiner_refine.masks import Box, MaskWindow, union

Images: TypeAlias = Sequence[NDArray[np.uint8]]  # H×W×3 RGB each

_FOCUS_SHARE = 0.3  # of the object's longer side: shows some outline around the change
_FOCUS_LEAST = 32  # pixels


@dataclass(frozen=True)
class Roi:
    """A rectangle of whole pixels inside its image: columns x0 … x1 − 1, rows y0 … y1 − 1."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def side(self) -> int:
        """The longer side, pixels."""
        return max(self.width, self.height)


def roi_of(window: MaskWindow) -> Roi:
    """The rectangle that a window covers."""
    height, width = window.values.shape
    return Roi(window.x, window.y, window.x + width, window.y + height)


class RoiSettings(Protocol):
    """How far an RoI reaches beyond its mask; see ``RefinerConfig`` for what each means."""

    def margin(self, side: float, /) -> float: ...
    @property
    def roi_min_margin(self) -> int: ...
    @property
    def roi_max_aspect(self) -> float: ...


def roi_around(mask: MaskWindow, config: RoiSettings, margin: float | None = None) -> Roi:
    """``roi_around_box`` of a coarse mask with at least one foreground pixel."""
    return roi_around_box(mask.box, mask.size, config, margin)


def roi_around_box(
    box: Box, image_size: tuple[int, int], config: RoiSettings, margin: float | None = None
) -> Roi:
    """The box of a mask's foreground with a margin, widened towards a square, clipped to the image.

    What a detector's box cut off can only be recovered inside the RoI, hence the margin.

    Args:
        box: (x0, y0, x1, y1) in pixels.
        image_size: (height, width), pixels.
        config: margins and aspect limit.
        margin: in place of ``config.margin`` (training varies it).
    """
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    share = config.margin(max(h, w)) if margin is None else margin
    width = w + max(share * w, 2.0 * config.roi_min_margin)
    height = h + max(share * h, 2.0 * config.roi_min_margin)
    width, height = max(width, height / config.roi_max_aspect), max(height, width / config.roi_max_aspect)
    cx, cy = x0 + w / 2, y0 + h / 2
    image_height, image_width = image_size
    return Roi(
        max(0, math.floor(cx - width / 2)),
        max(0, math.floor(cy - height / 2)),
        min(image_width, math.ceil(cx + width / 2)),
        min(image_height, math.ceil(cy + height / 2)),
    )


def overlap(a: Roi, b: Roi) -> float:
    """Intersection over union of two rectangles."""
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    common = max(width, 0) * max(height, 0)
    return common / (a.width * a.height + b.width * b.height - common)


def resample(values: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    """Resizes [h, w] or [h, w, C] values: area average along a shrinking axis, bilinear along a growing one."""
    h, w = values.shape[:2]
    for size, shrinks in (((width, h), w > width), ((width, height), h > height)):  # axis by axis
        if values.shape[1::-1] != size:
            values = cv2.resize(values, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return values


def crop_roi(image: NDArray[np.uint8], roi: Roi, side: int) -> NDArray[np.uint8]:
    """The RoI's pixels resized to a square: image H×W×3 uint8 → [side, side, 3] uint8."""
    return resample(image[roi.y0 : roi.y1, roi.x0 : roi.x1], side, side)


def read_mask(mask: MaskWindow, roi: Roi) -> NDArray[np.float32]:
    """The mask's values inside the RoI: [height, width] float32 in [0, 1]."""
    out = np.zeros((roi.height, roi.width), np.float32)
    h, w = mask.values.shape
    y0, y1 = max(mask.y, roi.y0), min(mask.y + h, roi.y1)
    x0, x1 = max(mask.x, roi.x0), min(mask.x + w, roi.x1)
    if y0 < y1 and x0 < x1:
        part = mask.values[y0 - mask.y : y1 - mask.y, x0 - mask.x : x1 - mask.x]
        out[y0 - roi.y0 : y1 - roi.y0, x0 - roi.x0 : x1 - roi.x0] = part
    return out


def paste_into_roi(
    probability: NDArray[np.float32], refined: NDArray[np.bool_], coarse_mask: MaskWindow, roi: Roi
) -> NDArray[np.float32]:
    """The refined probability at the image's resolution inside the RoI: [roi.height, roi.width] float32 in [0, 1].

    Args:
        probability: [grid, grid] from the finest level.
        refined: [cells, cells], the relabelled cells; all other pixels keep the coarse mask's value.
        coarse_mask: the mask that was refined.
        roi: where both grids lie in the image.
    """
    values = resample(probability, roi.width, roi.height)
    inside = cv2.resize(refined.view(np.uint8), values.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return np.where(inside.astype(bool), values, read_mask(coarse_mask, roi))


def focus(before: MaskWindow, after: MaskWindow) -> tuple[int, int, int, int]:
    """The place to show of an instance: a square (x0, y0, x1, y1) in the image on the most changed part of the outline.

    Where nothing changed it is the topmost part. The masks are tight bool windows; one of them may be empty.
    """
    filled = [mask for mask in (before, after) if mask.values.size]
    either = union(filled, before.size)
    x0, y0 = either.x, either.y
    changed = np.zeros(either.values.shape, bool)
    for mask in filled:
        replace(mask, x=mask.x - x0, y=mask.y - y0).of(changed)[...] ^= mask.values
    side = max(_FOCUS_LEAST, round(_FOCUS_SHARE * max(changed.shape)))
    if not changed.any():
        changed[0, int(np.argmax(filled[0].values[0]))] = True
    sums = cv2.boxFilter(
        changed.astype(np.float32), -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    # the mean place of all maxima: of equally good windows the middle one
    rows, columns = np.nonzero(sums >= sums.max() - 0.5)
    height, width = filled[0].image_size
    side_x, side_y = min(side, width), min(side, height)
    left = min(max(0, x0 + round(float(columns.mean())) - side_x // 2), width - side_x)
    top = min(max(0, y0 + round(float(rows.mean())) - side_y // 2), height - side_y)
    return left, top, left + side_x, top + side_y
