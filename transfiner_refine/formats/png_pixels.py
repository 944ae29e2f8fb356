"""The pixels of mask PNGs: read as stored numbers, told apart by kind, written back in their pixel type."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.formats.images import opened
from transfiner_refine.types import InputError

__all__ = ["MaskPixels", "PngKind", "kind_of", "png_size", "read_pixels", "write_like"]

PngKind = Literal["binary", "id-map"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE = 0, 2, 3  # colour types of the PNG header
MOST_SCATTERED_IDS = 64  # an id map with more values than that must count them 1, 2, 3 ... without a gap


@dataclass(frozen=True)
class MaskPixels:
    """A mask PNG's pixels as numbers.

    Attributes:
        values: [H, W] uint8 or uint16; palette indexes where there is a palette.
        white: the value of full foreground in a soft mask: 255 or 65535 (1 for one-bit files).
        palette: the values are indexes into a palette.
    """

    values: NDArray[Any]
    white: int
    palette: bool


def read_pixels(path: Path) -> MaskPixels:
    """A mask PNG's numbers, whatever its bit depth; EXIF is ignored, for masks are not photographed.

    Raises:
        InputError: missing, damaged, no PNG, or in colours.
    """
    with opened(path) as image:
        if image.format != "PNG":
            raise InputError(f"is a {image.format} file", file=path, remedy="save masks as PNG, without loss")
        image.load()
        if image.mode == "RGB":
            colours = np.asarray(image)
            if (colours[..., 1:] != colours[..., :1]).any():
                raise InputError("is in colours", file=path, remedy="save it with one channel or a palette")
            return MaskPixels(np.ascontiguousarray(colours[..., 0]), 255, palette=False)
        if image.mode == "1":
            return MaskPixels(np.asarray(image, np.uint8), 1, palette=False)
        if image.mode in ("L", "P"):
            return MaskPixels(np.asarray(image), 255, palette=image.mode == "P")
        if image.mode.startswith("I"):  # 16-bit grey is "I;16" or, in older versions of Pillow, "I"
            return MaskPixels(np.asarray(image).astype(np.uint16), 65535, palette=False)
        raise InputError(
            f"has {image.mode} pixels", file=path, remedy="save it with one channel or a palette"
        )


def png_size(path: Path) -> tuple[int, int]:
    """(height, width) of a PNG from its header.

    Raises:
        InputError: missing, damaged or no image.
    """
    with opened(path) as image:
        return image.height, image.width


def kind_of(pixels: MaskPixels) -> PngKind:
    """Whether the one mask PNG of an image is a binary (or soft) mask of one instance, or a map of ids.

    * A palette means ids: nobody stores a confidence as palette indexes.
    * Nothing but 0 and one other value that is 1 or full white: binary. (One instance either way.)
    * Else ids are flat patches and soft masks are ramps: it is an id map where at least half of the values
      (other than 0) have a patch of 3×3 pixels, *and* there are at most 64 of them or they are 1, 2, 3 ...
      without a gap.
    * Everything else is soft. That is the harmless side: an id map taken for a soft mask comes out as one
      empty or odd instance and is reported, a soft mask taken for an id map would be torn into hundreds.
    """
    if pixels.palette:
        return "id-map"
    values = np.unique(pixels.values)
    values = values[values != 0]
    if len(values) == 0 or (len(values) == 1 and values[0] in (1, pixels.white)):
        return "binary"
    if len(values) > MOST_SCATTERED_IDS and int(values[-1]) != len(values):
        return "binary"
    flat = np.unique(_patches(pixels.values))
    return "id-map" if 2 * np.count_nonzero(flat) >= len(values) else "binary"


def write_like(original: Path, values: NDArray[Any], target: Path) -> None:
    """Writes a PNG with new pixels and all else (bit depth, palette, text) byte for byte as in ``original``.

    Args:
        original: a PNG that ``read_pixels`` accepts.
        values: [H, W] numbers in the terms of ``read_pixels``.
        target: the new file.
    """
    chunks = list(_chunks(original.read_bytes()))
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", chunks[0][1])
    assert values.shape == (height, width)
    rows = _packed(values, depth, colour)
    # filter "up": each row as its difference to the one above, which is nearly always 0 in masks
    above = np.zeros_like(rows)
    above[1:] = rows[:-1]
    filtered = np.concatenate((np.full((height, 1), 2, np.uint8), rows - above), axis=1)
    with target.open("wb") as file:
        file.write(_SIGNATURE)
        written = False
        for name, data in chunks:
            if name == b"IHDR":
                data = data[:12] + b"\0"  # not interlaced
            elif name == b"IDAT":
                if written:
                    continue
                data, written = zlib.compress(filtered.tobytes(), 6), True
            file.write(
                struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            )


def _patches(values: NDArray[Any]) -> NDArray[Any]:
    """[H - 2, W - 2]: the value of each 3×3 patch that has one value only, 0 elsewhere."""
    rows = np.where((values[:-2] == values[1:-1]) & (values[1:-1] == values[2:]), values[1:-1], 0)
    same = (rows[:, :-2] == rows[:, 1:-1]) & (rows[:, 1:-1] == rows[:, 2:])
    return np.where(same, rows[:, 1:-1], 0)


def _packed(values: NDArray[Any], depth: int, colour: int) -> NDArray[np.uint8]:
    """[H, bytes of a row]: the numbers as PNG samples of that depth, before filtering."""
    height, width = values.shape
    if colour == _RGB:
        values, width = np.repeat(values, 3, axis=1), 3 * width
        if depth == 16:
            values = values.astype(np.uint16) * 257  # Pillow reads 16-bit colours as 8-bit ones
    if depth == 16:
        return values.astype(">u2").view(np.uint8).reshape(height, 2 * width)
    if depth == 8:
        return values.astype(np.uint8)
    largest = (1 << depth) - 1
    if colour == _GREY and depth > 1:
        values = values // (255 // largest)  # Pillow spreads 2- and 4-bit grey over 0 ... 255
    bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1  # [H, W, depth]
    return np.packbits(bits.reshape(height, width * depth).astype(np.uint8), axis=1)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_SIGNATURE)
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name = data[at + 4 : at + 8]
        yield name, data[at + 8 : at + 8 + length]
        if name == b"IEND":
            return
        at += length + 12
