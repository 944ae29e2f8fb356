"""The pictures of the explanation: each stage of a trace as pixels, [h, w, 3] uint8 RGB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from transfiner_refine.explain.canvas import Colour
from transfiner_refine.masks import MaskWindow
from transfiner_refine.refine.roi import Roi, read_mask
from transfiner_refine.trace import TraceLevel, TracePass

__all__ = [
    "ADDED",
    "AFTER",
    "BACKGROUND",
    "BEFORE",
    "FOREGROUND",
    "LEVELS",
    "REMOVED",
    "changes",
    "context",
    "crop",
    "framed",
    "heat",
    "labels",
    "outlined",
    "quadtree",
]

Picture = NDArray[np.uint8]
Window = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the image

BEFORE: Colour = (255, 74, 96)
AFTER: Colour = (0, 166, 255)
ADDED: Colour = (40, 199, 111)
REMOVED: Colour = (255, 74, 96)
FOREGROUND: Colour = (0, 150, 199)
BACKGROUND: Colour = (255, 140, 40)
LEVELS: tuple[Colour, ...] = ((255, 225, 77), (255, 146, 51), (255, 61, 119), (176, 77, 255), (61, 139, 255))
"""Of the quadtree's levels, coarse to fine; the report's page has the same."""

_TINT = 0.4
_HEAT = np.array(
    [[20, 11, 53], [101, 21, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float32
)  # "inferno"


def crop(image: Picture, window: Window, width: int, height: int) -> Picture:
    """A part of the photo in another size; single pixels show where it is magnified much."""
    x0, y0, x1, y1 = window
    part = image[y0:y1, x0:x1]
    growth = width / max(1, x1 - x0)
    how = cv2.INTER_AREA if growth < 1 else cv2.INTER_NEAREST_EXACT if growth > 5 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(part, (width, height), interpolation=how), np.uint8)


def faded(picture: Picture, light: float = 0.55) -> Picture:
    """The picture without colour and nearer to white, as a ground for what is drawn on it."""
    grey = picture.mean(2, keepdims=True)
    return np.repeat(np.rint(grey * (1 - light) + 255 * light), 3, 2).astype(np.uint8)


def context(image: Picture, mask: MaskWindow, roi: Roi, width: int, height: int) -> Picture:
    """The whole photo with the mask tinted and the RoI as a frame; outside of the RoI it is faded."""
    whole = (0, 0, image.shape[1], image.shape[0])
    picture = crop(image, whole, width, height)
    scale = np.array([width / image.shape[1], height / image.shape[0]] * 2)
    inner = (roi.x0, roi.y0, roi.x1, roi.y1)
    x0, y0, x1, y1 = np.rint(np.array(inner) * scale).astype(int).tolist()
    ground = faded(picture, 0.6)
    ground[y0:y1, x0:x1] = picture[y0:y1, x0:x1]
    return framed(outlined(ground, [(mask, BEFORE)], whole, tint=True), inner, whole)


def outlined(
    picture: Picture, masks: Sequence[tuple[MaskWindow, Colour]], window: Window, *, tint: bool = False
) -> Picture:
    """The picture of a window of the image with masks outlined along their pixels' edges, and tinted if asked."""
    height, width = picture.shape[:2]
    result = picture.copy()
    for mask, colour in masks:
        inside = cv2.resize(
            _read(mask, window).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
        )
        if tint:
            share = (np.asarray(inside) * np.float32(_TINT))[:, :, None]
            result = np.rint(result * (1 - share) + np.array(colour, np.float32) * share).astype(np.uint8)
        padded = np.pad(inside, 1, mode="edge")  # no line where the picture ends and the mask goes on
        contours, _ = cv2.findContours(padded, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(-1, -1))
        edge = np.zeros((height, width), np.uint8)
        cv2.drawContours(edge, contours, -1, 255, 3, cv2.LINE_AA)
        edge[:2], edge[-2:], edge[:, :2], edge[:, -2:] = 0, 0, 0, 0
        share = (edge / np.float32(255))[:, :, None]
        result = np.rint(result * (1 - share) + np.array(colour, np.float32) * share).astype(np.uint8)
    return result


def heat(picture: Picture, level: TraceLevel, chosen: NDArray[np.bool_]) -> Picture:
    """What the detector says of each cell, dark to bright, over the photo; the chosen cells have a frame."""
    height, width = picture.shape[:2]
    values = np.nan_to_num(level.suspicion, nan=0.0)
    stops = values * (len(_HEAT) - 1)
    low = np.minimum(stops.astype(int), len(_HEAT) - 2)
    part = (stops - low)[..., None]
    colours = _HEAT[low] * (1 - part) + _HEAT[low + 1] * part  # [grid, grid, 3]
    layer = cv2.resize(colours, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    grey = picture.mean(2, keepdims=True)
    result = np.rint(np.asarray(layer) * 0.8 + grey * 0.2).astype(np.uint8)
    _frame(result, chosen, (255, 255, 255))
    return result


def quadtree(picture: Picture, step: TracePass) -> Picture:
    """All nodes, a colour for each level, the finer ones over the coarser ones."""
    result = faded(picture, 0.35)
    height, width = result.shape[:2]
    for number, level in enumerate(step.levels):
        colour = LEVELS[number % len(LEVELS)]
        inside = _cells_as_pixels(level.cells, width, height)
        result[inside] = np.rint(result[inside] * 0.68 + np.array(colour) * 0.32).astype(np.uint8)
        if width / level.grid >= 4:  # smaller cells are a colour, their lines would fill them
            _lines(result, level.cells, colour)
        else:
            result[inside] = np.rint(result[inside] * 0.45 + np.array(colour) * 0.55).astype(np.uint8)
    return result


def labels(level: TraceLevel, cells: Window, width: int, height: int) -> Picture:
    """The mask after a level was written, white where foreground; its nodes in the colours of their label.

    Args:
        level: of a trace.
        cells: the part of the grid to show, (x0, y0, x1, y1) in cells.
        width, height: of the picture, pixels.
    """
    x0, y0, x1, y1 = cells
    grey = np.float32(60) + np.float32(195) * level.mask
    colours = np.repeat(grey[..., None], 3, 2)
    share = level.label[:, None]
    colours[level.y, level.x] = np.array(FOREGROUND) * share + np.array(BACKGROUND) * (1 - share)
    part = np.rint(colours[y0:y1, x0:x1]).astype(np.uint8)
    picture = cv2.resize(part, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    result = np.ascontiguousarray(picture, np.uint8)
    if width / (x1 - x0) >= 6:
        _lines(result, level.cells[y0:y1, x0:x1], (255, 255, 255))
    return result


def changes(
    picture: Picture, before: MaskWindow, after: MaskWindow, window: Window, truth: MaskWindow | None
) -> Picture:
    """What refining added and removed; with truth: what it set right and what it set wrong, in the same colours."""
    height, width = picture.shape[:2]
    old, new = _read(before, window), _read(after, window)
    if truth is None:
        good, bad = new & ~old, old & ~new
    else:
        real = _read(truth, window)
        good, bad = (new == real) & (old != real), (new != real) & (old == real)
    result = faded(outlined(picture, [], window), 0.5)
    for pixels, colour in ((good, ADDED), (bad, REMOVED)):
        inside = _cells_as_pixels(pixels, width, height)
        result[inside] = np.rint(result[inside] * 0.12 + np.array(colour) * 0.88).astype(np.uint8)
    return result


def _read(mask: MaskWindow, window: Window) -> NDArray[np.bool_]:
    """The mask's pixels in a window of its image, [h, w]."""
    values: NDArray[np.bool_] = read_mask(mask, Roi(*window)) >= 0.5
    return values


def _cells_as_pixels(cells: NDArray[np.bool_], width: int, height: int) -> NDArray[np.bool_]:
    """[rows, columns] bool → [height, width] bool."""
    size = (width, height)
    return np.asarray(cv2.resize(cells.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)) > 0


def _edges(cells: int, length: int) -> NDArray[Any]:
    """Where cells begin and end along an axis, [cells + 1] pixels; as the nearest resize above has it."""
    return np.ceil(np.arange(cells + 1) * length / cells - 0.5).astype(int)


def framed(picture: Picture, inner: Window, window: Window) -> Picture:
    """The picture of a window of the image with a frame around a smaller window."""
    height, width = picture.shape[:2]
    scale = np.array([width / (window[2] - window[0]), height / (window[3] - window[1])] * 2)
    corners = (np.array(inner) - np.array([window[0], window[1]] * 2)) * scale
    x0, y0, x1, y1 = np.rint(corners).astype(int).tolist()
    result = picture.copy()
    for colour, thickness in (((255, 255, 255), 6), ((24, 27, 33), 2)):
        cv2.rectangle(result, (x0, y0), (x1 - 1, y1 - 1), colour, thickness, cv2.LINE_AA)
    return result


def _lines(picture: Picture, cells: NDArray[np.bool_], colour: Colour) -> None:
    """Hairlines around each marked cell of a grid that fills the picture."""
    height, width = picture.shape[:2]
    rows, columns = _edges(cells.shape[0], height), _edges(cells.shape[1], width)
    for y, x in np.argwhere(cells).tolist():
        y0, y1 = rows[y], min(rows[y + 1], height - 1)
        x0, x1 = columns[x], min(columns[x + 1], width - 1)
        picture[y0, x0 : x1 + 1] = picture[y1, x0 : x1 + 1] = colour
        picture[y0 : y1 + 1, x0] = picture[y0 : y1 + 1, x1] = colour


def _frame(picture: Picture, cells: NDArray[np.bool_], colour: Colour) -> None:
    """A line along the border of a set of cells."""
    height, width = picture.shape[:2]
    inside = _cells_as_pixels(cells, width, height).astype(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, colour, 2)
