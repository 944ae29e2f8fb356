"""Opening image files of any origin: known formats only, no more pixels than agreed, one kind of error."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import RLock
from typing import BinaryIO

from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.masks import MAX_PIXELS

__all__ = ["MAX_IMAGE_PIXELS", "check_pixels", "opened"]

MAX_IMAGE_PIXELS = 400_000_000  # 20,000 × 20,000; what a photo costs in memory is in docs/reliability.md

# Pillow's other formats stay shut: some start other programs (EPS runs Ghostscript), none is used for photos
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
_MAGIC_BYTES = 16  # what Pillow's plugins ask to see
_one_giant = RLock()
_lifted_from: list[int | None] = []  # Pillow's limit before it was lifted, while it is


@contextmanager
def opened(path: Path, max_pixels: int | None = MAX_IMAGE_PIXELS) -> Iterator[Image.Image]:
    """An image file in Pillow; whatever Pillow stumbles over inside the block comes out as one InputError.

    Only the header has been read when the block begins. A file is told by its content, not by its name.

    Args:
        path: the file.
        max_pixels: the largest height × width that is let through; None for any, where only the header matters.

    Raises:
        InputError: the file is missing, damaged, no image, or has more pixels than ``max_pixels``.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device read for ever
            raise InputError("is no file", file=path, remedy="give image files")
        with path.open("rb") as file, _identified(file, path) as image:
            if max_pixels is not None:
                check_pixels(image.height, image.width, max_pixels, path)
            pixels = image.height * image.width
            with _pillow_limit(pixels) if max_pixels and _is_giant(pixels) else nullcontext():
                yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("there is no such file", file=path, remedy="check its folder and its name") from None
    except (
        Exception
    ) as error:  # Pillow's decoders raise SyntaxError, struct.error, EOFError ... on damaged files
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise InputError(
            f"cannot be read as an image ({reason})", file=path, remedy="replace the file"
        ) from error


def check_pixels(height: int, width: int, max_pixels: int, path: Path | None = None) -> None:
    """Refuses an image or a mask for the size that it states, before anything is decoded.

    Raises:
        InputError: it has no pixels, more than ``max_pixels``, or more than a mask can have.
    """
    if height < 1 or width < 1:
        raise InputError(f"states the size {height}×{width}", file=path, remedy="replace the file")
    if height * width > min(max_pixels, MAX_PIXELS):
        raise InputError(
            f"states {height}×{width} = {height * width} pixels, more than the {min(max_pixels, MAX_PIXELS)} "
            + ("allowed" if max_pixels < MAX_PIXELS else "that run-length masks can have"),
            file=path,
            remedy="raise --max-image-pixels if the image is really that large"
            if max_pixels < MAX_PIXELS
            else "cut the image into parts",
        )


def _identified(file: BinaryIO, path: Path) -> Image.Image:
    """The image as ``Image.open`` gives it, without the global pixel limit of that function.

    No file name is handed on: with one, Pillow would map some files into memory, and a file that somebody
    shortens meanwhile would then crash the interpreter.
    """
    start = file.read(_MAGIC_BYTES)
    if any(name not in Image.OPEN for name in _FORMATS):
        Image.init()  # imports the plugins
    for name in _FORMATS:
        if name not in Image.OPEN:
            continue  # this Pillow was built without it
        factory, accepts = Image.OPEN[name]
        accepted = accepts is not None and accepts(start)
        if accepted and not isinstance(accepted, str):  # a text says what this Pillow lacks
            file.seek(0)
            return factory(file, "")
    raise InputError("is no image of a known format", file=path, remedy="replace the file")


def _is_giant(pixels: int) -> bool:
    """Whether Pillow's global limit, as others have set it, would be in the way."""
    limits = [limit for limit in (Image.MAX_IMAGE_PIXELS, *_lifted_from) if limit is not None]
    return pixels > min(limits, default=pixels)


@contextmanager
def _pillow_limit(pixels: int) -> Iterator[None]:
    """Lifts Pillow's global limit to ``pixels`` for the one giant image that is being decoded.

    Only some decoders (TIFF) ask for it. Meanwhile other threads meet a higher limit, never none; giants wait for
    one another, which also keeps their memory apart; and a limit that others set in between is left alone.
    """
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
