"""Opening and reading images: every kind of pixels to H×W×3 uint8 RGB, turned the way the masks say."""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.masks import MAX_PIXELS

MAX_IMAGE_PIXELS = 400_000_000  # 20,000 × 20,000; what an image costs in memory is in docs/reliability.md
# in the order in which they are preferred where one stem has several (a photo is rather a JPEG than a PNG)
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".tif", ".tiff",
    ".bmp", ".gif", ".ppm", ".pgm", ".pnm",
)  # fmt: skip
Orientation = Literal["auto", "upright", "stored"]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Pillow's other formats stay shut: some start other programs (EPS runs Ghostscript), none is used for photos
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
_MAGIC_BYTES = 16  # what Pillow's plugins ask to see
_STRIP_PIXELS = 1 << 23  # pixels converted at a time; ordinary images are one strip
_EXIF_ORIENTATION = 0x0112
# how stored pixels become upright ones, by EXIF orientation
_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}
_INVERSE = {6: 8, 8: 6}  # the other orientations undo themselves
_one_giant = RLock()
_lifted_from: list[int | None] = []  # Pillow's limit before it was lifted, while it is


def read_image(
    path: Path,
    mask_sizes: Collection[tuple[int, int]] = (),
    max_pixels: int = MAX_IMAGE_PIXELS,
    orientation: Orientation = "auto",
) -> tuple[NDArray[np.uint8], bool]:
    """An image as its masks see it: [H, W, 3] RGB, contiguous, and whether its EXIF orientation was applied.

    Detectors differ in whether they apply the EXIF orientation, so the masks decide: if one of them has the upright
    size, the image is turned upright; else if one has the size of the stored pixels, it stays as stored. Where both
    are equal (squares, turns by 180°) it is turned upright, as OpenCV's ``imread`` does. Grey, palette, CMYK and 16-bit
    pixels become 8-bit RGB; alpha is dropped. Of animations and files of several pages the first is taken.

    Args:
        path: the file.
        mask_sizes: (height, width) of its masks, pixels; empty for upright.
        max_pixels: the largest height × width that is decoded; more is refused on the file's header.
        orientation: "upright" or "stored" where the masks should not decide.

    Raises:
        InputError: the file is missing, damaged, no image, larger than ``max_pixels``, or of a size that no mask has.
    """
    stored, upright, exif = _decoded(path, max_pixels)
    if orientation == "stored":
        upright, exif = stored, 1
    if not mask_sizes or upright.shape[:2] in mask_sizes:
        return np.ascontiguousarray(upright), exif in _UPRIGHT
    if orientation == "auto" and stored.shape[:2] in mask_sizes:
        return np.ascontiguousarray(stored), False
    sizes = f"{upright.shape[0]}×{upright.shape[1]}"
    if stored.shape != upright.shape:
        sizes += f" upright and {stored.shape[0]}×{stored.shape[1]} as stored"
    masks = " and ".join(f"{height}×{width}" for height, width in sorted(mask_sizes)[:3])
    reason = f"the image is {sizes} (height × width), its masks are {masks}"
    remedy = (
        "give the images the masks were made on; mask images and arrays may be stretched with --fit-masks"
    )
    raise InputError(reason, file=path, remedy=remedy)


def pixels_of(image: Image.Image, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """[H, W, 3] uint8 RGB of an image that is open in Pillow.

    It is turned by its EXIF orientation only where that gives it the ``size`` (height, width) of its masks, and its own
    has not. Raises InputError where its pixels are of no kind that can be shown.
    """
    pixels, orientation = _rgb(image, None), _orientation(image)
    if size not in (None, pixels.shape[:2]) and orientation in _UPRIGHT:
        upright = _UPRIGHT[orientation](pixels)
        pixels = upright if upright.shape[:2] == size else pixels
    return np.ascontiguousarray(pixels)


def image_sizes(path: Path, orientation: Orientation = "auto") -> tuple[tuple[int, int], ...]:
    """(height, width) that an image may have, without decoding its pixels: upright, then as stored if that differs.

    One of the two with an ``orientation``. Raises InputError where the file is missing, damaged or no image.
    """
    with opened(path, None) as image:
        if image.format == "PNG" and "exif" not in image.info:
            # it may come after the pixels, and Pillow would decode them to see
            late = [data for name, data in read_chunks(path) if name == b"eXIf"]
            image.info["exif"] = bytes(late[-1]) if late else b""
        stated = image.height, image.width
        turned = stated[::-1] if _orientation(image) >= 5 else stated
        # of TIFF Pillow states the upright size
        upright, stored = (stated, turned) if image.format == "TIFF" else (turned, stated)
    found = {"auto": (upright, stored), "upright": (upright,), "stored": (stored,)}[orientation]
    return tuple(dict.fromkeys(found))


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image, its EXIF orientation applied; raises InputError as ``image_sizes`` does."""
    return image_sizes(path, "upright")[0]


@contextmanager
def opened(path: Path, max_pixels: int | None = MAX_IMAGE_PIXELS) -> Iterator[Image.Image]:
    """An image file in Pillow; whatever Pillow stumbles over inside the block comes out as one InputError.

    Only the header has been read when the block begins. A file is told by its content, not by its name. More than
    ``max_pixels``, height × width, are refused; None lets any through, where only the header matters.

    Raises:
        InputError: the file is missing, damaged, no image, or has too many pixels.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device read for ever
            raise InputError("is no file", file=path, remedy="give image files")
        with path.open("rb") as file, _identified(file, path) as image:
            if max_pixels is not None:
                check_pixels(image.height, image.width, max_pixels, path)
            with _pillow_limit(image.height * image.width if max_pixels else 0):
                yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("there is no such file", file=path, remedy="check its folder and its name") from None
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error ... on damaged files
        what = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        reason = f"cannot be read as an image ({what})"
        raise InputError(reason, file=path, remedy="replace the file") from error


def check_pixels(height: int, width: int, max_pixels: int, path: Path | None = None) -> None:
    """Raises InputError for an image or a mask that states no pixels, too many, or more than a mask can have."""
    if height < 1 or width < 1:
        raise InputError(f"states the size {height}×{width}", file=path, remedy="replace the file")
    if height * width > min(max_pixels, MAX_PIXELS):
        most, remedy = f"{max_pixels} allowed", "raise --max-image-pixels if the image is really that large"
        if max_pixels >= MAX_PIXELS:
            most, remedy = f"{MAX_PIXELS} that run-length masks can have", "cut the image into parts"
        reason = f"states {height}×{width} = {height * width} pixels, more than the {most}"
        raise InputError(reason, file=path, remedy=remedy)


def read_chunks(path: Path) -> list[tuple[bytes, memoryview]]:
    """(name, data) of every chunk of a PNG up to IEND; raises InputError where it is damaged.

    Pillow does not look at the checksum of pixel data, so that a flipped bit can move an outline unnoticed.
    """

    def damaged(how: str) -> InputError:
        return InputError(how, file=path, remedy="the file is damaged; replace it")

    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="check the path") from error
    if data[: len(PNG_SIGNATURE)] != PNG_SIGNATURE:
        raise InputError("is no PNG file", file=path, remedy="replace the file")
    chunks: list[tuple[bytes, memoryview]] = []
    at = len(PNG_SIGNATURE)
    while at < len(data) and (not chunks or chunks[-1][0] != b"IEND"):
        name, end = bytes(data[at + 4 : at + 8]), len(data)
        if at + 12 <= len(data):
            end = at + 8 + int(struct.unpack_from(">I", data, at)[0])
        if end + 4 > len(data):
            raise damaged("ends in the middle of a chunk")
        if zlib.crc32(data[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise damaged(f"has a wrong checksum in its chunk {name!r}")
        chunks.append((name, data[at + 8 : end]))
        at = end + 4
    if [index for index, (name, _) in enumerate(chunks) if name == b"IHDR"] != [0] or len(chunks[0][1]) != 13:
        raise damaged("does not begin with its one header")
    return chunks


def _decoded(path: Path, max_pixels: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    """[H, W, 3] pixels as stored, the same turned upright (a view), and the EXIF orientation.

    A function of its own so that Pillow's copy of the pixels is gone before the next copy is made.
    """
    with opened(path, max_pixels) as image:
        orientation = _orientation(image)
        if image.format == "PNG":
            read_chunks(path)
        image.load()
        pixels = _rgb(image, path)
        if image.format == "TIFF" and orientation in _UPRIGHT and _orientation(image) == 1:
            # Pillow has turned it already
            return _UPRIGHT[_INVERSE.get(orientation, orientation)](pixels), pixels, orientation
    return pixels, _UPRIGHT[orientation](pixels) if orientation in _UPRIGHT else pixels, orientation


def _identified(file: BinaryIO, path: Path) -> Image.Image:
    """The image as ``Image.open`` gives it, without the global pixel limit of that function.

    No file name is handed on: with one, Pillow would map some files into memory, and a file that somebody
    shortens meanwhile would then crash the interpreter.
    """
    start = file.read(_MAGIC_BYTES)
    if any(name not in Image.OPEN for name in _FORMATS):
        Image.init()  # imports the plugins
    if (is_heif := start[4:8] == b"ftyp") and "HEIF" not in Image.OPEN:
        with suppress(ImportError):
            import pillow_heif  # the extra "heic"

            pillow_heif.register_heif_opener()
    for name in _FORMATS:
        if name not in Image.OPEN:
            continue  # this Pillow was built without it
        factory, accepts = Image.OPEN[name]
        accepted = accepts is not None and accepts(start)
        if accepted and not isinstance(accepted, str):  # a text says what this Pillow lacks
            file.seek(0)
            return factory(file, "")
    remedy = "install transfiner-refine[heic], or convert it to JPEG" if is_heif else "replace the file"
    raise InputError("is no image of a known format", file=path, remedy=remedy)


@contextmanager
def _pillow_limit(pixels: int) -> Iterator[None]:
    """Lifts Pillow's global limit, where it is in the way, to ``pixels`` for the one giant image that is being decoded.

    Only some decoders (TIFF) ask for it. Meanwhile other threads meet a higher limit, never none; giants wait for
    one another; and a limit that others set in between is left alone.
    """
    limits = [limit for limit in (Image.MAX_IMAGE_PIXELS, *_lifted_from) if limit is not None]
    if pixels <= min(limits, default=pixels):
        yield
        return
    with _one_giant:
        # before it is lifted, so that no other giant takes the lifted one for it
        _lifted_from.append(Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = pixels
        try:
            yield
        finally:
            if pixels == Image.MAX_IMAGE_PIXELS:
                Image.MAX_IMAGE_PIXELS = _lifted_from[-1]
            _lifted_from.pop()


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 ... 8; 1 where there is none or it makes no sense."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing; the pixels may be well
        return 1
    return value if type(value) is int and value in _UPRIGHT else 1


def _rgb(image: Image.Image, path: Path | None) -> NDArray[np.uint8]:
    """[H, W, 3] uint8 of a loaded image, in the frame Pillow has it.

    Large images go over in strips, so that only two copies of the pixels exist: Pillow's and ours.
    """
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    if rows < height:
        pixels = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            pixels[top:bottom] = _rgb(image.crop((0, top, width, bottom)), path)
        return pixels
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would cut off at 255
        wide = np.asarray(image).astype(np.int64)
        if int(wide.min()) < 0 or int(wide.max()) > 65535:
            raise InputError("has 32-bit pixels", file=path, remedy="convert the image to 8 or 16 bits")
        return np.repeat(((wide + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise InputError("has floating point pixels", file=path, remedy="convert the image to 8 or 16 bits")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"), np.uint8)
