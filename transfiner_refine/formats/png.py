"""Mask images as stored numbers: read and checked, and written again with all but the pixels as it was.

PNG, TIFF, BMP and PGM come out in their own kind. What loses or blends pixels, such as JPEG, is cut at the middle of
its values, which takes the noise away, and is written as PNG.
"""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import putchunk

from transfiner_refine.errors import InputError
from transfiner_refine.images import MAX_IMAGE_PIXELS, PNG_SIGNATURE, opened, read_chunks

_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6  # colour types of the PNG header
_MIDDLE = 128  # of 8-bit greys; masks that lost pixels are cut there
_TINT = 48  # by how much the channels of a grey JPEG may differ; it stores colours coarsely
_LEVEL, _FLAT = (
    range(16, 224),
    8,
)  # greys that are neither black nor white, and what they differ by where they are flat
_TIFF_LOSSLESS = (
    "raw",
    "packbits",
    "tiff_lzw",
    "tiff_adobe_deflate",
    "tiff_deflate",
    "group3",
    "group4",
    "tiff_ccitt",
)
# TIFF tags that say how pixels are stored, which Pillow writes itself, and the orientation, which it applies
_TIFF_LAYOUT = {
    254,
    *range(256, 260),
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    284,
    317,
    320,
    *range(322, 326),
    338,
    339,
}


@dataclass(frozen=True)
class MaskPixels:
    """A mask image."""

    # [H, W] uint8 or uint16; palette indexes where there is one; uint32 where colours or 32-bit TIFFs hold ids;
    # float32 in [0, 1] of float TIFFs
    values: NDArray[Any]
    white: int  # full foreground in a soft mask: the largest value of the file's bit depth
    palette: bool  # the values are indexes into a palette
    chunks: list[tuple[bytes, memoryview]]  # name and data of a PNG's chunks; empty for other kinds
    mode: str = ""  # of TIFF, BMP and PGM in Pillow; empty for other kinds
    settings: dict[str, Any] = field(default_factory=dict)  # and what they are saved with
    colours: bytes = b""  # and their palette; of a PNG whose alpha is the mask, its one colour

    @property
    def is_binary(self) -> bool:
        """At most one value besides 0."""
        return bool(((self.values == 0) | (self.values == self.values.max())).all())

    def write(self, values: NDArray[Any], target: Path) -> None:
        """Writes an image of the same kind with other [H, W] values; depth, palette, text and all else as here."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.chunks:
            self._write_png(values, target)
        elif self.mode:
            self._image(values).save(target, **self.settings)
        else:
            write_png(target, values.astype(self.values.dtype))

    def _image(self, values: NDArray[Any]) -> Image.Image:
        if self.mode in ("1", "F"):
            return Image.fromarray(values.astype(bool if self.mode == "1" else np.float32))
        if self.mode == "I":
            return Image.fromarray(values.astype(np.int32))
        image = Image.fromarray(values.astype(np.uint16 if self.mode.startswith("I;16") else np.uint8))
        if self.mode == "P":
            image.putpalette(self.colours)
            return image
        return image.convert(self.mode) if self.mode in ("LA", "RGB", "RGBA") else image

    def _write_png(self, values: NDArray[Any], target: Path) -> None:
        _, _, depth, colour = _header(self.chunks)
        rows = _packed(values.astype(self.values.dtype, copy=False), depth, colour, self.colours)
        # filter "up": each row as its difference to the one above, which is nearly always 0 in masks
        filtered = np.full((len(rows), 1 + rows.shape[1]), 2, np.uint8)
        filtered[0, 1:] = rows[0]
        np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
        pixels = [zlib.compress(filtered.data, 6)]
        with target.open("wb") as file:
            file.write(PNG_SIGNATURE)
            for name, data in self.chunks:
                if name == b"IHDR":  # not interlaced
                    putchunk(file, name, struct.pack(">II", *values.shape[::-1]) + bytes(data[8:12]) + b"\0")
                elif name != b"IDAT":
                    putchunk(file, name, bytes(data))
                elif pixels:
                    putchunk(file, name, pixels.pop())


def read_pixels(
    path: Path, max_pixels: int = MAX_IMAGE_PIXELS, *, ids_in_colours: bool = False
) -> MaskPixels:
    """A mask image's numbers, whatever its bit depth; EXIF is ignored.

    With ``ids_in_colours`` red, green and blue are the three bytes of an id, lowest first, as COCO panoptic has them.

    Raises:
        InputError: missing, damaged, no image, larger than ``max_pixels`` (height × width, by the header); in colours
            where they are no ids, or the other way round; several greys in a file that cannot keep them apart.
    """
    with opened(path, max_pixels) as image:
        if image.format == "PNG":
            return _read_png(image, path, ids_in_colours)
        if ids_in_colours:
            raise InputError(f"is a {image.format} file", file=path, remedy="save ids as PNG, without loss")
        if getattr(image, "n_frames", 1) > 1:
            reason, remedy = "holds several images", "save each mask in a file of its own"
            raise InputError(f"{reason}, and only one could be read", file=path, remedy=remedy)
        if _is_lossless(image):
            return _read_lossless(image, path)
        return MaskPixels(_cut(image, path), 255, False, [])


def is_kept_kind(path: Path, max_pixels: int = MAX_IMAGE_PIXELS) -> bool:
    """Whether a mask image is written in its own kind; raises InputError as ``read_pixels`` may."""
    with opened(path, max_pixels) as image:
        if image.format == "PNG" and image.mode in ("LA", "RGBA"):
            return bool(_read_png(image, path, False).chunks)
        return image.format == "PNG" or _is_lossless(image)


def _is_lossless(image: Image.Image) -> bool:
    """Whether a file that is no PNG keeps every number, and is written so again."""
    if image.format == "TIFF":
        return image.info.get("compression", "raw") in _TIFF_LOSSLESS
    return image.format in ("BMP", "PPM")


def _read_png(image: Image.Image, path: Path, ids_in_colours: bool) -> MaskPixels:
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
    elif depth == 16:
        values = _one_of(_sixteen_bits(image, path), (1 << depth) - 1, path, has_alpha=colour != _RGB)
    else:
        channels = np.asarray(image)
        tint = _tint(channels) if colour != _RGB and not channels[..., -1].all() else None
        if tint is not None:  # the shape of a cut-out, whose colours do not outlive a new one
            alpha = np.ascontiguousarray(channels[..., -1])
            return MaskPixels(alpha, 255, False, chunks if tint else [], colours=tint)
        values = _one_of(channels, 255, path, has_alpha=colour != _RGB)
    return MaskPixels(values, (1 << depth) - 1, colour == _PALETTE, chunks)


def _read_lossless(image: Image.Image, path: Path) -> MaskPixels:
    """A TIFF or BMP."""
    tags = getattr(image, "tag_v2", {})
    if image.mode in ("RGB", "RGBA", "LA") and max(tags.get(258, (8,))) > 8:
        raise InputError("has 16 bits a channel in colours", file=path, remedy="save it with one channel")
    settings: dict[str, Any] = {"format": image.format}
    if image.format == "TIFF":
        kept = {tag: value for tag, value in tags.items() if tag not in _TIFF_LAYOUT}
        settings |= {"compression": image.info.get("compression", "raw"), "tiffinfo": kept}
    mode, colours, stored = image.mode, b"", np.asarray(image)
    white = {"1": 1, "I;16": 65535, "I;16B": 65535, "I": (1 << 31) - 1, "F": 1}.get(mode, 255)
    if mode in ("RGB", "RGBA", "LA"):
        values: NDArray[Any] = _one_of(stored, 255, path, has_alpha=mode != "RGB")
    elif mode == "P":
        assert image.palette is not None
        values, colours = stored, bytes(image.getpalette() or [])
    elif mode in ("I", "F"):
        lowest = float(stored.min())
        is_whole = mode == "I" or bool((stored == np.rint(stored)).all())
        if not lowest >= 0 or float(stored.max()) >= 1 << 31 or not (is_whole or stored.max() <= 1):
            reason = f"has values from {lowest:g} to {float(stored.max()):g}"
            raise InputError(reason, file=path, remedy="save ids from 0 on, or confidences from 0 to 1")
        values = stored.astype(np.uint32) if is_whole else stored
        white = 1 << 24 if mode == "F" and stored.max() > 1 else white
    elif mode in ("1", "L", "I;16", "I;16B"):
        values = stored.astype(np.uint8 if mode in ("1", "L") else np.uint16)
    else:
        raise InputError(f"has {mode} pixels", file=path, remedy="save it with one channel")
    return MaskPixels(values, white, mode == "P", [], mode, settings, colours)


def _cut(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """[H, W] 0 or 255: a grey image that has lost pixels, cut at the middle."""
    import cv2  # here, because hardly any mask needs it

    remedy = "save masks as PNG, without loss"
    if image.mode != "L":
        colours = np.asarray(image.convert("RGB"))
        if (colours.max(2) - colours.min(2)).max() > _TINT:
            raise InputError("is in colours", file=path, remedy=remedy)
    grey = np.asarray(image.convert("L"))
    near = np.ones((3, 3), np.uint8)
    flat = cv2.subtract(cv2.dilate(grey, near), cv2.erode(grey, near)) <= _FLAT
    levels = np.count_nonzero(flat & (grey >= _LEVEL.start) & (grey < _LEVEL.stop))
    lit = grey >= _MIDDLE
    if 10 * levels > np.count_nonzero(grey >= _LEVEL.start) or (grey.any() and not lit.any()):
        reason = f"has areas of greys between black and white, which {image.format} does not keep apart"
        raise InputError(reason, file=path, remedy=remedy)
    return np.where(lit, 255, 0).astype(np.uint8)


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


def _tint(channels: NDArray[Any]) -> bytes | None:
    """The colour of all pixels that can be seen; nothing where there are several, None where these are greys."""
    seen = channels[..., :-1][channels[..., -1] > 0]
    tint = bytes(seen[0]) if len(seen) else bytes(channels.shape[-1] - 1)
    if (seen == np.frombuffer(tint, np.uint8)).all():
        return tint
    return b"" if (seen != seen[:, :1]).any() else None


def _sixteen_bits(image: Image.Image, path: Path) -> NDArray[Any]:
    """[H, W, channels] of a PNG; Pillow would halve it to 8 bits, and small ids would be gone."""
    import cv2  # here, because hardly any mask needs it

    decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    channels = np.asarray(image) if decoded is None else decoded
    if channels.ndim != 3 or channels.dtype != np.uint16:
        raise InputError("cannot be read as 16-bit PNG", file=path, remedy="save it with one channel")
    return channels


def _one_of(channels: NDArray[Any], opaque: int, path: Path, *, has_alpha: bool) -> NDArray[Any]:
    """[H, W]: the numbers of an opaque image that has several channels and none but greys."""
    colours = channels[..., :-1] if has_alpha else channels[..., :3]
    if (colours[..., 1:] != colours[..., :1]).any():
        raise InputError("is in colours", file=path, remedy="save it with one channel or a palette")
    if has_alpha and (channels[..., -1] != opaque).any():
        raise InputError("has pixels that are not opaque", file=path, remedy="save it with one channel")
    return np.ascontiguousarray(colours[..., 0])


def _bytes_of_ids(ids: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """[H, W, 3]: the three lower bytes of each id, lowest first."""
    return np.stack((ids & 255, ids >> 8 & 255, ids >> 16), axis=-1).astype(np.uint8)


def _packed(values: NDArray[Any], depth: int, colour: int, tint: bytes) -> NDArray[np.uint8]:
    """[H, bytes of a row]: the numbers as PNG samples of that depth, before filtering; as the alpha of a ``tint``."""
    height, width = values.shape
    if depth < 8:
        bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1  # [H, W, depth]
        return np.packbits(bits.reshape(height, width * depth).astype(np.uint8), axis=1)
    samples = values[..., None]  # [H, W, channels]
    if colour in (_RGB, _RGB_ALPHA):
        samples = _bytes_of_ids(values) if values.dtype == np.uint32 else np.repeat(samples, 3, axis=2)
    if tint:
        plain = np.broadcast_to(np.frombuffer(tint, np.uint8), (height, width, len(tint)))
        samples = np.concatenate((plain, values[..., None]), axis=2)
    elif colour in (_GREY_ALPHA, _RGB_ALPHA):
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
