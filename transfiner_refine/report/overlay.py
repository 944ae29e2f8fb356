"""Masks drawn on their image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from transfiner_refine.evaluation.overlap import common_window
from transfiner_refine.masks import MaskWindow

COLOURS = (
    (0, 174, 255),
    (255, 176, 0),
    (178, 122, 255),
    (0, 210, 196),
    (255, 225, 77),
    (127, 155, 255),
    (217, 160, 102),
    (201, 209, 220),
)
"""RGB of an image's instances in turn; the page has the same. None is red or green, which mean worse and better."""

_OPACITY = 0.3


def outline_masks(
    image: NDArray[np.uint8], masks: Sequence[MaskWindow], labels: Sequence[str]
) -> NDArray[np.uint8]:
    """The image with a thin outline along the edge of each mask, and its label beside it.

    Args:
        image: [H, W, 3] uint8 RGB.
        masks: bool windows.
        labels: of each mask.

    Returns:
        [H, W, 3] uint8 RGB.
    """
    painted = image.copy()
    for number, mask in enumerate(masks):
        if mask.values.size:
            (inside,) = common_window(mask.tight(), margin=1)
            contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            corner = (max(0, mask.tight().x - 1), max(0, mask.tight().y - 1))
            colour = COLOURS[number % len(COLOURS)]
            thickness = max(1, round(max(image.shape[:2]) / 1000))
            cv2.drawContours(painted, contours, -1, colour, thickness, cv2.LINE_AA, offset=corner)
    sheet = Image.fromarray(painted)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(max(11, round(max(image.shape[:2]) / 60)))
    for number, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        if mask.values.size:
            x0, y0, x1, _ = mask.box
            draw.text(
                ((x0 + x1) / 2, y0 + 2), label, (255, 255, 255), font, "ma",
                stroke_width=2, stroke_fill=tuple(value // 3 for value in COLOURS[number % len(COLOURS)]),
            )  # fmt: skip
    return np.asarray(sheet)


def paint_masks(
    image: NDArray[np.uint8], masks: Sequence[MaskWindow], labels: Sequence[str] = ()
) -> NDArray[np.uint8]:
    """The image with each mask tinted, and outlined and labelled as ``outline_masks`` does.

    Args:
        image: [H, W, 3] uint8 RGB.
        masks: tight bool windows.
        labels: of each mask; none for no labels.

    Returns:
        [H, W, 3] uint8 RGB.
    """
    painted = image.copy()
    for number, mask in enumerate(masks):
        view, colour = mask.of(painted), np.array(COLOURS[number % len(COLOURS)], np.float32)
        tint = mask.values[:, :, None] * np.float32(_OPACITY)
        view[:] = np.rint(view * (1 - tint) + colour * tint)
    return outline_masks(painted, masks, labels or [""] * len(masks))
