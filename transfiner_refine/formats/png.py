"""Mask PNGs as stored numbers: read and checked, and written again with all but the pixels as it was."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import putchunk

from transfiner_refine.errors import InputError
from transfiner_refine.images import MAX_IMAGE_PIXELS, PNG_SIGNATURE, opened, read_chunks

_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6  # colour types of the PNG header


@dataclass(frozen=True)
class MaskPixels:
    """A mask PNG."""

    values: NDArray[
        Any
    ]  # [H, W] uint8 or uint16; palette indexes where there is one; uint32 where colours are ids
    white: int  # the largest value of the file's bit depth, which is full foreground in a soft mask
    palette: bool  # the values are indexes into a palette
    chunks: list[tuple[bytes, memoryview]]  # name and data of the file's chunks

    @property
    def is_binary(self) -> bool:
        """At most one value besides 0."""
        return bool(((self.values == 0) | (self.values == self.values.max())).all())

    def write(self, values: NDArray[Any], target: Path) -> None:
        """Writes a PNG with other [H, W] values; bit depth, palette, text and all else byte for byte as here."""
        height, width, depth, colour = _header(self.chunks)
        assert values.shape == (height, width)
        rows = _packed(values.astype(self.values.dtype, copy=False), depth, colour)
        # filter "up": each row as its difference to the one above, which is nearly always 0 in masks
        filtered = np.full((height, 1 + rows.shape[1]), 2, np.uint8)
        filtered[0, 1:] = rows[0]
        np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
        pixels = [zlib.compress(filtered.data, 6)]
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.write(PNG_SIGNATURE)
            for name, data in self.chunks:
                if name == b"IHDR":
                    putchunk(file, name, bytes(data[:12]) + b"\0")  # not interlaced
                elif name != b"IDAT":
                    putchunk(file, name, bytes(data))
                elif pixels:
                    putchunk(file, name, pixels.pop())


def read_pixels(
    path: Path, max_pixels: int = MAX_IMAGE_PIXELS, *, ids_in_colours: bool = False
) -> MaskPixels:
    """A mask PNG's numbers, whatever its bit depth; EXIF is ignored.

    With ``ids_in_colours`` red, green and blue are the three bytes of an id, lowest first, as COCO panoptic has them.

    Raises:
        InputError: missing, damaged, no PNG, larger than ``max_pixels`` (height × width, by the header); in colours
            where they are no ids, or the other way round.
    """
    with opened(path, max_pixels) as image:
        if image.format != "PNG":
            raise InputError(f"is a {image.format} file", file=path, remedy="save masks as PNG, without loss")
        chunks = read_chunks(path)
        _, _, depth, colour = _header(chunks)
        if ids_in_colours:
            if colour not in (_RGB, _RGB_ALPHA) or depth != 8:
                reason = "is no panoptic PNG: it has one channel, a palette or 16 bits"
                raise InputError(reason, file=path, remedy="save ids as colours, R + 256 G + 65536 B")
            red, green, blue = (np.asarray(image)[..., channel].astype(np.uint32) for channel in range(3))
            values: NDArray[Any] = red | green << 8 | blue << 16
        elif colour in (_GREY, _PALETTE):
            values = np.asarray(image).astype(np.uint16 if depth == 16 else np.uint8, copy=False)
            if colour == _GREY and 1 < depth < 8:  # Pillow spreads 2 and 4 bits over 0 ... 255
                values = values // (255 // ((1 << depth) - 1))
        else:
            values = _grey_of_colours(image, depth, path, has_alpha=colour in (_GREY_ALPHA, _RGB_ALPHA))
        return MaskPixels(values, (1 << depth) - 1, colour == _PALETTE, chunks)


def png_size(path: Path) -> tuple[int, int]:
    """(height, width) of a PNG by its header, however large; raises InputError where it is missing or no image."""
    with opened(path, None) as image:
        return image.height, image.width


def palette_of(path: Path) -> bytes | None:
    """The RGB bytes of a PNG's palette, empty where it has none; None where the file is damaged up to there."""
    with suppress(InputError), opened(path, None) as image:
        if image.format == "PNG":
            return b"" if image.palette is None or image.mode != "P" else bytes(image.palette.palette)
    return None


def write_png(path: Path, values: NDArray[Any], palette: bytes = b"") -> None:
    """Writes a new PNG; folders are made.

    ``values`` are [H, W] uint8 or uint16 numbers, or uint32 ids below 2²⁴ that become colours; a ``palette`` has 256
    RGB colours of uint8 indexes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = _bytes_of_ids(values) if values.dtype == np.uint32 else np.ascontiguousarray(values)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(palette)
    image.save(path, format="PNG")


def _header(chunks: list[tuple[bytes, memoryview]]) -> tuple[int, int, int, int]:
    """Height and width in pixels, bits a sample, colour type."""
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[0][1])
    return height, width, depth, colour


def _grey_of_colours(image: Image.Image, depth: int, path: Path, *, has_alpha: bool) -> NDArray[Any]:
    """[H, W]: the numbers of an opaque PNG that has several channels and none but greys."""
    if depth == 16:  # Pillow would halve it to 8 bits, and small ids would be gone
        import cv2  # here, because hardly any mask needs it

        decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        channels = np.asarray(image) if decoded is None else decoded
        if channels.ndim != 3 or channels.dtype != np.uint16:
            raise InputError("cannot be read as 16-bit PNG", file=path, remedy="save it with one channel")
    else:
        channels = np.asarray(image)
    colours = channels[..., :-1] if has_alpha else channels[..., :3]
    if (colours[..., 1:] != colours[..., :1]).any():
        raise InputError("is in colours", file=path, remedy="save it with one channel or a palette")
    if has_alpha and (channels[..., -1] != (1 << depth) - 1).any():
        raise InputError("has pixels that are not opaque", file=path, remedy="save it with one channel")
    return np.ascontiguousarray(colours[..., 0])


def _bytes_of_ids(ids: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """[H, W, 3]: the three lower bytes of each id, lowest first."""
    return np.stack((ids & 255, ids >> 8 & 255, ids >> 16), axis=-1).astype(np.uint8)


def _packed(values: NDArray[Any], depth: int, colour: int) -> NDArray[np.uint8]:
    """[H, bytes of a row]: the numbers as PNG samples of that depth, before filtering."""
    height, width = values.shape
    if depth < 8:
        bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1  # [H, W, depth]
        return np.packbits(bits.reshape(height, width * depth).astype(np.uint8), axis=1)
    samples = values[..., None]  # [H, W, channels]
    if colour in (_RGB, _RGB_ALPHA):
        samples = _bytes_of_ids(values) if values.dtype == np.uint32 else np.repeat(samples, 3, axis=2)
    if colour in (_GREY_ALPHA, _RGB_ALPHA):
        opaque = np.full((height, width, 1), (1 << depth) - 1, samples.dtype)
        samples = np.concatenate((samples, opaque), axis=2)
    stored = np.ascontiguousarray(samples, ">u2" if depth == 16 else np.uint8)
    return stored.view(np.uint8).reshape(height, -1)


def _voc_palette() -> bytes:
    """Pascal VOC's colour map: bit k of an index goes, three at a time, to the top bits of red, green and blue."""
    index, steps = np.arange(256)[:, None, None], np.arange(3)  # [index, channel, step]
    bits = index >> (3 * steps + np.arange(3)[:, None]) & 1
    return (bits << 7 - steps).sum(2).astype(np.uint8).tobytes()


def _davis_palette() -> bytes:
    """DAVIS' colours: VOC's, with 191 for 192, and greys from index 22 on."""
    colours = np.frombuffer(VOC_PALETTE, np.uint8).reshape(256, 3).copy()
    colours[colours == 192] = 191
    colours[22:] = np.arange(22, 256)[:, None]
    return colours.tobytes()


VOC_PALETTE = _voc_palette()  # 256 × RGB
DAVIS_PALETTE = _davis_palette()
