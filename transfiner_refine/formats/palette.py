"""The colours of id maps, and new mask PNGs: with a palette, grey with 8 bits, grey with 16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["DAVIS_PALETTE", "VOC_PALETTE", "has_voc_palette", "is_palette_png", "write_grey", "write_indexed"]

_COMPARED_COLOURS = 8  # VOC's and DAVIS' colours are the same up to here, and many tools store no more


def _voc_palette() -> bytes:
    """Pascal VOC's colour map: bit k of an index goes, three at a time, to the top bits of red, green and blue."""
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for step in range(3):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * step + channel)) & 1) << (7 - step)).astype(np.uint8)
    return colours.tobytes()


def _davis_palette() -> bytes:
    """DAVIS' colours: VOC's, with 191 for 192, and greys from index 22 on."""
    colours = np.frombuffer(VOC_PALETTE, np.uint8).reshape(256, 3).copy()
    colours[colours == 192] = 191
    colours[22:] = np.arange(22, 256)[:, None]
    return colours.tobytes()


VOC_PALETTE = _voc_palette()  # 256 × RGB
DAVIS_PALETTE = _davis_palette()


def is_palette_png(path: Path) -> bool:
    """Whether a file is a PNG with a palette; False for anything that cannot be opened."""
    return _palette(path) is not None


def has_voc_palette(path: Path) -> bool:
    """Whether a PNG has Pascal VOC's colours and so, by VOC's convention, 255 for void."""
    palette = _palette(path)
    used = 3 * _COMPARED_COLOURS
    return palette is not None and len(palette) >= used and palette[:used] == VOC_PALETTE[:used]


def write_indexed(path: Path, values: NDArray[Any], palette: bytes) -> None:
    """Writes [H, W] uint8 indexes as a PNG of mode P; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.ascontiguousarray(values, np.uint8))
    image.putpalette(palette)
    image.save(path, format="PNG")


def write_grey(path: Path, values: NDArray[Any]) -> None:
    """Writes [H, W] uint8 or uint16 numbers as a grey PNG of 8 or 16 bits; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(values)).save(path, format="PNG")


def _palette(path: Path) -> bytes | None:
    """The bytes of the PLTE chunk, from the file's beginning; None where there is none."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return None
    if not start.startswith(b"\x89PNG\r\n\x1a\n") or start[25:26] != b"\x03":  # colour type 3: indexed
        return None
    at = start.find(b"PLTE")
    return start[at + 4 : at + 4 + int.from_bytes(start[at - 4 : at], "big")] if at > 0 else b""
