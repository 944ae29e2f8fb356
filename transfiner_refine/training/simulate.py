"""Simulated coarse masks: the errors that detectors, labelling tools and networks make, applied to a true mask.

The kinds follow what was seen in real outputs. Masks of networks of high resolution, of classical segmentation and of
labelling by clicks have their outlines on edges of the image, only on the wrong ones: see ``_Regions``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from transfiner_refine.masks import MaskWindow

__all__ = ["ERRORS", "near_side", "outline_point", "simulate_coarse"]

#: Share of the masks that have each error, in the order in which errors are applied.
ERRORS: Mapping[str, float] = {
    "speckle": 0.06,
    "cut_by_box": 0.06,
    "lose_part": 0.04,
    "smooth": 0.15,
    "deform": 0.25,
    "wobble": 0.20,
    "polygon": 0.15,
    "clicks": 0.0,
    "wrong_box": 0.0,
    "grid": 0.70,
    "shift": 0.55,
    "bumps": 0.65,
    "scale_jitter": 0.30,
}

Mask = NDArray[np.uint8]  # [h, w], 0 or 1
_PAD = 0.35  # canvas around the object's box, as a share of its longer side
_LEAST_IOU = 0.4
_LEAST_SEGMENTED = 12  # pixels; a smaller box has no regions
_REGION_SIDE = 144  # longer side at which the image is segmented, pixels


def simulate_coarse(
    truth: MaskWindow,
    rng: np.random.Generator,
    image: NDArray[np.uint8] | None = None,
    errors: Mapping[str, float] = ERRORS,
) -> MaskWindow:
    """A coarse version of a true mask.

    Args:
        truth: a bool mask with at least one foreground pixel.
        rng: the only source of randomness.
        image: H×W×3 uint8, for errors that follow the image's regions; None for others only.
        errors: as ``ERRORS``.

    Returns:
        bool mask whose IoU with the truth is at least 0.4; the truth itself in about one case of six, so that a
        refiner also learns to leave a good mask alone.
    """
    tight = truth.tight()
    h, w = tight.values.shape
    pad = int(np.ceil(_PAD * max(h, w))) + 2
    true = np.pad(tight.values.astype(np.uint8, order="C"), pad)  # OpenCV draws on no other order
    regions = None
    if image is not None and min(h, w) >= _LEAST_SEGMENTED:
        rows = np.clip(np.arange(tight.y - pad, tight.y + h + pad), 0, image.shape[0] - 1)
        columns = np.clip(np.arange(tight.x - pad, tight.x + w + pad), 0, image.shape[1] - 1)
        regions = _Regions(image[rows[:, None], columns], rng)
    simulation = _Simulation(pad, float(np.sqrt(h * w)), rng)
    for _ in range(4):
        coarse = simulation.corrupted(true, regions, errors)
        if np.count_nonzero(true & coarse) >= _LEAST_IOU * np.count_nonzero(true | coarse):
            break
    else:
        coarse = true
    y, x, (height, width) = tight.y - pad, tight.x - pad, truth.image_size
    inside = coarse[max(0, -y) : height - y, max(0, -x) : width - x].astype(bool)
    return MaskWindow(inside, max(0, x), max(0, y), truth.image_size) if inside.any() else truth


def near_side(
    mask: NDArray[Any], rng: np.random.Generator, share: tuple[float, float], bend: float = 0.0
) -> NDArray[np.bool_]:
    """The side of a random line that holds a share of a mask's foreground: [h, w] bool.

    ``share`` is the least and most of the foreground, of which there must be a pixel; the line bends by up to ``bend``
    times the canvas.
    """
    h, w = mask.shape
    angle = rng.uniform(0, 2 * np.pi)
    x, y = (np.arange(w) - w / 2)[None], (np.arange(h) - h / 2)[:, None]
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.sin(angle) * x - np.cos(angle) * y
    along = along + rng.uniform(-bend, bend) / max(h, w) * across**2
    end = np.quantile(along[mask > 0], rng.uniform(*share), method="higher")
    return np.asarray(along <= end)


def outline_point(mask: Mask, rng: np.random.Generator) -> tuple[int, int] | None:
    """A random foreground pixel (row, column) of [h, w] with background beside it; None if there is none."""
    edge = np.flatnonzero(mask & (cv2.erode(mask, np.ones((3, 3), np.uint8)) == 0))
    if len(edge) == 0:
        return None
    row, column = divmod(int(edge[rng.integers(len(edge))]), mask.shape[1])
    return row, column


class _Simulation:
    """Errors on one object's canvas; every error is a method mask → mask, none changes its argument.

    ``pad`` is the canvas's rim around the object's box, ``side`` the square root of the box's area; in pixels.
    """

    def __init__(self, pad: int, side: float, rng: np.random.Generator) -> None:
        self.pad, self.side, self.rng = pad, side, rng

    def corrupted(self, true: Mask, regions: _Regions | None, errors: Mapping[str, float]) -> Mask:
        rng = self.rng
        if rng.random() < 0.2:  # right, or nearly so
            return self.scale_jitter(true, 0.0, 0.01) if rng.random() < 0.5 else true
        if rng.random() < 0.02:  # only a box
            return np.pad(np.ones_like(true[self.pad : -self.pad, self.pad : -self.pad]), self.pad)
        mask = true
        if regions is not None:
            mask = regions.voted(mask, rng) if rng.random() < 0.3 else regions.swapped(mask, rng)
            if rng.random() < 0.5:  # as a network of high resolution leaves it
                return mask
        for name, share in errors.items():
            if rng.random() < share:
                error: Callable[[Mask], Mask] = getattr(self, name)
                mask = error(mask)
        return mask

    def speckle(self, mask: Mask) -> Mask:
        """Islands beside the object and holes in it, as labelling pixel by pixel leaves them."""
        out = mask.copy()
        for _ in range(self.rng.integers(1, 5)):
            row, column = (int(self.rng.integers(length)) for length in mask.shape)
            self._ellipse(out, (row, column), (0.01, 0.06), 1 - int(mask[row, column]))
        return out

    def cut_by_box(self, mask: Mask) -> Mask:
        """A detector's box that is too small on one or two sides."""
        out = mask.copy()
        for _ in range(self.rng.integers(1, 3)):
            share, edge = self.rng.uniform(0.02, 0.14), self.rng.integers(4)
            lines = out.T if edge >= 2 else out
            lines = lines[::-1] if edge % 2 else lines
            lines[: self.pad + int(share * (len(lines) - 2 * self.pad))] = 0
        return out

    def lose_part(self, mask: Mask) -> Mask:
        """Everything beyond a straight line through the object is missed: an arm, a head, a wheel."""
        return mask * near_side(mask, self.rng, (0.75, 0.95)) if mask.any() else mask

    def smooth(self, mask: Mask) -> Mask:
        """Thin parts and corners vanish."""
        return _binary(self._blurred(mask, 0.01, 0.05))

    def deform(self, mask: Mask) -> Mask:
        """An imprecise drawn outline: a smooth displacement."""
        h, w = mask.shape
        reach = self.rng.uniform(0.01, 0.03) * self.side
        x = np.arange(w, dtype=np.float32)[None] + reach * self._field((h, w))
        y = np.arange(h, dtype=np.float32)[:, None] + reach * self._field((h, w))
        return np.asarray(cv2.remap(mask, x, y, cv2.INTER_NEAREST), np.uint8)

    def wobble(self, mask: Mask) -> Mask:
        """An uncertain network: smooth noise added to a blurred mask before the threshold."""
        blurred = self._blurred(mask, 0.02, 0.06)
        return _binary(blurred + self.rng.uniform(0.08, 0.25) * self._field(mask.shape))

    def polygon(self, mask: Mask) -> Mask:
        """A hand-drawn polygon with few corners; holes are filled."""
        tolerance = self.rng.uniform(0.005, 0.03) * self.side
        polygons = [cv2.approxPolyDP(contour, tolerance, True) for contour in _contours(mask)]
        polygons = [polygon for polygon in polygons if len(polygon) >= 3]
        return np.asarray(cv2.fillPoly(np.zeros_like(mask), polygons, 1), np.uint8)

    def clicks(self, mask: Mask) -> Mask:
        """12 to 24 corners that a hurried annotator clicks, each a little off; holes and small parts are missed."""
        out = np.zeros_like(mask)
        for contour in _contours(mask):
            if cv2.contourArea(contour) < 0.1 * np.count_nonzero(mask):
                continue
            most, tolerance = self.rng.integers(12, 25), 0.002 * self.side
            while len(corners := cv2.approxPolyDP(contour, tolerance, True)) > most:
                tolerance *= 1.2
            moved = corners + self.rng.normal(0, 0.015 * self.side, corners.shape)
            cv2.fillPoly(out, [np.rint(moved).astype(np.int32)], 1)
        return out

    def wrong_box(self, mask: Mask) -> Mask:
        """A detector's box that is far off: what lies outside is lost, and the mask is stretched towards it."""
        size = np.array(mask.shape[::-1]) - 2 * self.pad
        box = np.array([[self.pad] * 2, self.pad + size])  # [corner, (x, y)]
        growth = np.outer((-0.5, 0.5), self.rng.normal(0, 0.12, 2) * size)
        wrong = box + self.rng.normal(0, 0.08, 2) * size + growth
        low, high = box + self.rng.uniform(0, 0.6) * (wrong - box)
        zoom = (high - low) / size
        matrix = np.column_stack((np.diag(zoom), low - zoom * self.pad))
        stretched = cv2.warpAffine(mask, matrix, mask.shape[::-1], flags=cv2.INTER_NEAREST)
        (x0, y0), (x1, y1) = wrong.clip(0).astype(int)
        out = np.zeros_like(mask)
        out[y0:y1, x0:x1] = stretched[y0:y1, x0:x1]
        return out

    def grid(self, mask: Mask) -> Mask:
        """A mask head's S×S grid over a box: area average, bilinear back, threshold."""
        cells = int(np.exp(self.rng.uniform(np.log(12), np.log(64))))
        rim = self.pad - int(
            self.rng.uniform(0.0, 0.6) * self.pad
        )  # the head's box seldom fits the object exactly
        crop = mask[rim:-rim, rim:-rim].astype(np.float32)
        cell_shares = cv2.resize(crop, (cells, cells), interpolation=cv2.INTER_AREA)
        back = cv2.resize(cell_shares, crop.shape[::-1], interpolation=cv2.INTER_LINEAR)
        return np.pad(_binary(back, self.rng.uniform(0.35, 0.65)), rim)

    def shift(self, mask: Mask) -> Mask:
        """Moved by up to 4 % and scaled by up to 5 %."""
        scale, move = self.rng.uniform(0.95, 1.05, 2), self.rng.uniform(-0.04, 0.04, 2) * self.side
        size = np.array(mask.shape[::-1])
        matrix = np.column_stack((np.diag(scale), size / 2 * (1 - scale) + move))
        return np.asarray(cv2.warpAffine(mask, matrix, size.tolist(), flags=cv2.INTER_NEAREST), np.uint8)

    def bumps(self, mask: Mask) -> Mask:
        """One to three ellipses added or bitten off at the outline."""
        for _ in range(self.rng.choice((1, 2, 3), p=(8 / 13, 3 / 13, 2 / 13))):
            point = outline_point(mask, self.rng)
            if point is not None:
                mask = mask.copy()
                self._ellipse(mask, point, (0.04, 0.13), int(self.rng.random() < 0.5))
        return mask

    def scale_jitter(self, mask: Mask, least: float = 0.01, most: float = 0.05) -> Mask:
        """Too thin or too thick by a share of the side."""
        radius = round(self.rng.uniform(least, most) * self.side)
        if radius < 1:
            return mask
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        return np.asarray((cv2.erode if self.rng.random() < 0.5 else cv2.dilate)(mask, disc), np.uint8)

    def _ellipse(self, out: Mask, centre: tuple[int, int], reach: tuple[float, float], value: int) -> None:
        """Fills an ellipse in ``out``; centre (row, column), half axes within ``reach`` of the side."""
        axes = [max(1, int(self.rng.uniform(*reach) * self.side)) for _ in range(2)]
        cv2.ellipse(out, centre[::-1], axes, self.rng.uniform(0, 180), 0, 360, value, -1)

    def _blurred(self, mask: Mask, least: float, most: float) -> NDArray[np.float32]:
        sigma = max(0.5, self.rng.uniform(least, most) * self.side)
        return np.asarray(cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma), np.float32)

    def _field(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Smooth noise of unit size: [h, w]."""
        cells = self.rng.integers(4, 13)
        noise = self.rng.standard_normal((cells, cells)).astype(np.float32)
        return np.asarray(cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


class _Regions:
    """An image [h, w, 3] in regions of even colour: a watershed from seeds on a jittered grid."""

    def __init__(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> None:
        self.size = pixels.shape[1::-1]  # (width, height)
        width, height = (max(4, round(length * _REGION_SIDE / max(self.size))) for length in self.size)
        small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        spacing = rng.uniform(6.0, 24.0)
        rows, columns = max(2, int(height / spacing)), max(2, int(width / spacing))
        y, x = np.mgrid[:rows, :columns].astype(np.float64) + rng.uniform(0.1, 0.9, (2, rows, columns))
        seeds = np.zeros((height, width), np.int32)
        numbers = np.arange(1, rows * columns + 1).reshape(rows, columns)
        seeds[(y * height / rows).astype(int), (x * width / columns).astype(int)] = numbers
        labels = cv2.watershed(np.ascontiguousarray(small), seeds)
        # the lines between regions and the rim are -1: they go to a neighbour
        grown = cv2.dilate(labels.astype(np.float32), np.ones((3, 3), np.uint8))
        self.labels: NDArray[np.int64] = np.where(labels < 0, grown, labels).astype(np.int64).clip(0)

    def voted(self, mask: Mask, rng: np.random.Generator) -> Mask:
        """Every region goes to the side that holds most of it."""
        return self._enlarged(self._shares(self._reduced(mask))[self.labels] >= rng.uniform(0.35, 0.65))

    def swapped(self, mask: Mask, rng: np.random.Generator) -> Mask:
        """One to three regions at the outline are lost, or added, as a whole."""
        reduced = self._reduced(mask)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
        near = cv2.morphologyEx(_binary(reduced), cv2.MORPH_GRADIENT, disc)
        touched = np.unique(self.labels[near > 0])
        if len(touched) == 0:
            return mask
        out, shares = mask.copy(), self._shares(reduced)
        for region in rng.choice(touched, size=min(len(touched), int(rng.integers(1, 4))), replace=False):
            # a region mostly outside can only be added, one mostly inside only be lost
            out[self._enlarged(self.labels == region) > 0] = rng.random() >= shares[region]
        return out

    def _shares(self, reduced: NDArray[np.float32]) -> NDArray[np.float64]:
        """Of each region, the share inside a mask."""
        labels = self.labels.ravel()
        return np.asarray(np.bincount(labels, reduced.ravel()) / np.maximum(np.bincount(labels), 1))

    def _reduced(self, mask: Mask) -> NDArray[np.float32]:
        size = self.labels.shape[::-1]
        return np.asarray(cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA), np.float32)

    def _enlarged(self, region: NDArray[np.bool_]) -> Mask:
        return _binary(cv2.resize(region.astype(np.float32), self.size, interpolation=cv2.INTER_LINEAR))


def _binary(values: NDArray[Any], threshold: float = 0.5) -> Mask:
    return (values >= threshold).astype(np.uint8)


def _contours(mask: Mask) -> list[NDArray[np.int32]]:
    """Outer contours, [points, 1, 2] as (x, y) each."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [np.asarray(contour, np.int32) for contour in contours]
