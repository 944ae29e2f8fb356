"""A sheet of paper to lay pictures and text on."""

from __future__ import annotations

from functools import cache
from importlib import resources
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["INK", "LINE", "PAPER", "QUIET", "Canvas", "Colour"]

Colour = tuple[int, int, int]

PAPER: Colour = (255, 255, 255)
INK: Colour = (24, 27, 33)
QUIET: Colour = (96, 104, 117)
LINE: Colour = (222, 226, 232)

Weight = Literal["Regular", "SemiBold"]
_LEADING = 1.36  # line height over font size


@cache
def _font(size: int, weight: Weight) -> ImageFont.FreeTypeFont:
    file = resources.files("transfiner_refine.explain") / "fonts" / f"Inter-{weight}.otf"
    return ImageFont.truetype(BytesIO(file.read_bytes()), size)


class Canvas:
    """An RGB sheet; coordinates are pixels from its left top corner.

    Args:
        width, height: of the sheet, pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def text(
        self, x: float, y: float, text: str, size: int, *, weight: Weight = "Regular", colour: Colour = INK
    ) -> float:
        """One line of text with its top at ``y``; returns its right end."""
        font = _font(size, weight)
        self._draw.text((x, y), text, font=font, fill=colour)
        return x + font.getlength(text)

    def paragraph(
        self, x: float, y: float, width: float, text: str, size: int, colour: Colour = QUIET
    ) -> float:
        """Text broken to a width; returns the y below its last line."""
        for line in _lines(text, width, _font(size, "Regular")):
            self.text(x, y, line, size, colour=colour)
            y += size * _LEADING
        return y

    def picture(self, x: int, y: int, pixels: NDArray[np.uint8]) -> None:
        """A picture [h, w, 3] uint8 with a hairline around it."""
        height, width = pixels.shape[:2]
        self.image.paste(Image.fromarray(pixels), (x, y))
        self._draw.rectangle((x - 1, y - 1, x + width, y + height), outline=LINE)

    def rule(self, x0: float, x1: float, y: float) -> None:
        """A horizontal hairline."""
        self._draw.line((x0, y, x1, y), fill=LINE, width=2)

    def swatch(self, x: float, y: float, size: float, colour: Colour) -> None:
        """A small square of a legend."""
        self._draw.rounded_rectangle((x, y, x + size, y + size), radius=size / 5, fill=colour)


def paragraph_height(text: str, width: float, size: int) -> float:
    """How high ``Canvas.paragraph`` will be, pixels."""
    return len(_lines(text, width, _font(size, "Regular"))) * size * _LEADING


def _lines(text: str, width: float, font: ImageFont.FreeTypeFont) -> list[str]:
    """The text in lines that fit; a word longer than a line stands alone."""
    lines: list[str] = []
    for word in text.split(" "):  # not at no-break spaces
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
