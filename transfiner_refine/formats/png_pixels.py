"""The pixels of mask PNGs: read as stored numbers, told apart by kind, written back in their pixel type."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.formats.png_chunks import read_header, write_chunks
from transfiner_refine.formats.records import PngKind
from transfiner_refine.images import MAX_IMAGE_PIXELS, opened, read_chunks

__all__ = ["MaskPixels", "kind_of", "png_size", "read_pixels", "read_values", "write_like"]

_GREY, _RGB, _PALETTE = 0, 2, 3  # colour types of the PNG header
MOST_SCATTERED_IDS = 64  # an id map with more values than that must count them 1, 2, 3 ... without a gap


@dataclass(frozen=True)
class MaskPixels:
    """A mask PNG's pixels as numbers.

    Attributes:
        values: [H, W] uint8 or uint16; palette indexes where there is a palette.
        white: the value of full foreground in a soft mask: 255 or 65535 (1, 3, 15 for 1, 2, 4 bits).
        palette: the values are indexes into a palette.
    """

    values: NDArray[Any]
    white: int
    palette: bool


def read_pixels(path: Path, max_pixels: int = MAX_IMAGE_PIXELS) -> MaskPixels:
    """A mask PNG's numbers, whatever its bit depth; EXIF is ignored, for masks are not photographed.

    Args:
        path: the file.
        max_pixels: the largest height × width that is decoded; more is refused on the file's header.

    Raises:
        InputError: missing, damaged, no PNG, in colours, or larger than ``max_pixels``.
    """
    with opened(path, max_pixels) as image:
        if image.format != "PNG":
            raise InputError(f"is a {image.format} file", file=path, remedy="save masks as PNG, without loss")
        header = read_header(read_chunks(path))
        if header.colour == _RGB:
            return _grey_of_colours(image, header.depth, path)
        if header.colour == _PALETTE:
            return MaskPixels(np.asarray(image), 255, palette=True)
        if header.colour == _GREY and header.depth == 16:  # "I;16" or, in older versions of Pillow, "I"
            return MaskPixels(np.asarray(image).astype(np.uint16), 65535, palette=False)
        if header.colour == _GREY:
            largest = (1 << header.depth) - 1
            values = np.asarray(image, np.uint8)
            if 1 < header.depth < 8:  # Pillow spreads 2 and 4 bits over 0 ... 255
                values = values // (255 // largest)
            return MaskPixels(values, largest, palette=False)
        raise InputError(
            f"has {image.mode} pixels", file=path, remedy="save it with one channel or a palette"
        )


def read_values(path: Path, max_pixels: int = MAX_IMAGE_PIXELS) -> NDArray[Any]:
    """[H, W]: the values of ``read_pixels`` alone.

    Raises:
        InputError: as for ``read_pixels``.
    """
    return read_pixels(path, max_pixels).values


def png_size(path: Path) -> tuple[int, int]:
    """(height, width) of a PNG from its header, however large it says that it is.

    Raises:
        InputError: missing, damaged or no image.
    """
    with opened(path, None) as image:
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
    chunks = read_chunks(original)
    header = read_header(chunks)
    assert values.shape == header.size
    rows = _packed(values, header.depth, header.colour)
    # filter "up": each row as its difference to the one above, which is nearly always 0 in masks
    above = np.zeros_like(rows)
    above[1:] = rows[:-1]
    filtered = np.concatenate((np.full((header.size[0], 1), 2, np.uint8), rows - above), axis=1)
    copied: list[tuple[bytes, bytes | memoryview]] = []
    written = False
    for name, data in chunks:
        if name == b"IHDR":
            copied.append((name, bytes(data[:12]) + b"\0"))  # not interlaced
        elif name != b"IDAT":
            copied.append((name, data))
        elif not written:
            copied.append((name, zlib.compress(filtered.tobytes(), 6)))
            written = True
    write_chunks(copied, target)


def _grey_of_colours(image: Image.Image, depth: int, path: Path) -> MaskPixels:
    """The numbers of an RGB PNG that has none but greys."""
    if depth == 16:  # Pillow would halve it to 8 bits, and small ids would be gone
        import cv2  # here, because hardly any mask needs it

        colours = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        if colours is None or colours.shape != (image.height, image.width, 3) or colours.dtype != np.uint16:
            raise InputError("cannot be read as 16-bit PNG", file=path, remedy="save it with one channel")
    else:
        colours = np.asarray(image)
    if (colours[..., 1:] != colours[..., :1]).any():
        raise InputError("is in colours", file=path, remedy="save it with one channel or a palette")
    return MaskPixels(np.ascontiguousarray(colours[..., 0]), (1 << depth) - 1, palette=False)


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
        return values.astype(">u2").view(np.uint8).reshape(height, 2 * width)
    if depth == 8:
        return values.astype(np.uint8)
    bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1  # [H, W, depth]
    return np.packbits(bits.reshape(height, width * depth).astype(np.uint8), axis=1)
