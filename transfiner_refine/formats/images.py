"""Finding and reading photos: every kind of pixels to H×W×3 uint8 RGB, turned the way the masks say."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.formats.image_file import MAX_IMAGE_PIXELS, opened
from transfiner_refine.formats.png_chunks import read_chunks

__all__ = ["MAX_IMAGE_PIXELS", "DecodedImage", "ImageFolder", "opened", "read_image", "upright_size"]

# in the order in which they are preferred where one stem has several (a photo is rather a JPEG than a PNG)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")

_ORIENTATION = 0x0112  # EXIF tag
_STRIP_PIXELS = 1 << 23  # pixels converted at a time; ordinary photos are one strip
_LONGEST_NAME = 100  # characters of a name that a message quotes
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


@dataclass(frozen=True)
class DecodedImage:
    """A photo ready for the network.

    Attributes:
        pixels: [H, W, 3] uint8 RGB, contiguous.
        turned: its EXIF orientation was applied, so the pixels lie otherwise than in the file.
    """

    pixels: NDArray[np.uint8]
    turned: bool


class ImageFolder:
    """The photos of ``--images``, found by name, by stem or by COCO image id; never outside the folder.

    "Outside" is what a *file* could ask for: ``../``, absolute paths, drives. Symbolic links inside the folder
    are followed wherever they lead, for who can put one there has the say over the folder anyway, and data
    sets are often assembled of links.
    """

    def __init__(self, root: Path, *, without: Collection[str] = ()) -> None:
        """Lists the folder once.

        Args:
            root: the folder.
            without: file names in it that are no photos.

        Raises:
            InputError: there is no such folder, or it cannot be listed.
        """
        self.root = root
        try:
            with os.scandir(root) as entries:
                names = sorted(entry.name for entry in entries if entry.name not in without)
        except OSError as error:
            raise InputError(
                f"cannot be listed as a folder ({error.strerror})",
                file=root,
                remedy="give the folder of the photos",
            ) from error
        self._names = frozenset(names)
        photos = [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]
        photos.sort(key=lambda name: SUFFIXES.index(PurePosixPath(name).suffix.lower()))
        self._by_stem: dict[str, str] = {}
        self._by_number: dict[int, list[str]] = {}
        for name in photos:
            stem = PurePosixPath(name).stem
            if (
                self._by_stem.setdefault(stem, name) == name
                and stem.isascii()
                and stem.isdigit()
                and len(stem) < 20
            ):
                self._by_number.setdefault(int(stem), []).append(name)

    def with_stem(self, stem: str) -> Path | None:
        """The photo of that name without its extension, None if there is none."""
        name = self._by_stem.get(stem)
        return None if name is None else self.root / name

    def named(self, file_name: str) -> Path:
        """The photo that a file calls ``file_name``, at that place in the folder or directly in it.

        Raises:
            InputError: there is none; the text lists the names that were tried.
        """
        relative = PurePosixPath(file_name.replace("\\", "/"))
        inside = (
            not relative.is_absolute()
            and ".." not in relative.parts
            and not PureWindowsPath(file_name).drive  # there, root / "C:x.jpg" is not below the root
        )
        tried = list(dict.fromkeys([str(relative), relative.name] if inside else [relative.name]))
        for name in tried:
            if name in self._names or (inside and "/" in name and _is_file(self.root / name)):
                return self.root / name
        raise self._not_found(f"image {_short(file_name)}", tried)

    def with_id(self, image_id: int | str) -> Path:
        """The photo of a COCO image id: ``000000000139.jpg``, ``139.jpg``, ``139.png``, any zero padding.

        A text id may be a file name or a stem.

        Raises:
            InputError: there is none, or several; the text lists the names that were tried.
        """
        text = isinstance(image_id, str)
        stems = [str(image_id)] if text else list(dict.fromkeys([f"{image_id:012d}", str(image_id)]))
        tried = [*(stems if text else []), *(stem + suffix for stem in stems for suffix in SUFFIXES)]
        for name in tried:
            if name in self._names:
                return self.root / name
        padded = [] if isinstance(image_id, str) else self._by_number.get(image_id, [])
        if len(padded) == 1:
            return self.root / padded[0]
        remedy = "say which photo it is with --image-info annotations.json"
        if padded:
            raise InputError(
                f"image id {image_id} could be {' or '.join(padded[:3])}", file=self.root, remedy=remedy
            )
        raise self._not_found(f"the photo of image id {_short(image_id)}", tried, remedy)

    def _not_found(self, what: str, tried: list[str], remedy: str = "check --images") -> InputError:
        names = [name if name.isprintable() and len(name) < _LONGEST_NAME else _short(name) for name in tried]
        return InputError(f"{what} is not there (tried {', '.join(names)})", file=self.root, remedy=remedy)


def read_image(
    path: Path, mask_sizes: Collection[tuple[int, int]] = (), max_pixels: int = MAX_IMAGE_PIXELS
) -> DecodedImage:
    """A photo as its masks see it.

    Detectors differ in whether they apply the EXIF orientation, so the masks decide: if one of them has the
    upright size, the image is turned upright; else if one has the size of the stored pixels, it stays as
    stored. Where both sizes are equal (square photos, turns by 180°) the image is turned upright, as
    OpenCV's ``imread`` does. Grey, palette, CMYK and 16-bit pixels become 8-bit RGB; alpha is dropped. Of
    animations and files of several pages the first is taken, as OpenCV takes it.

    Args:
        path: the file.
        mask_sizes: (height, width) of its masks, pixels; empty for upright.
        max_pixels: the largest height × width that is decoded; more is refused on the file's header.

    Raises:
        InputError: the file is missing, damaged, no image, larger than ``max_pixels``, or of a size that no
            mask has.
    """
    stored, upright, orientation = _decoded(path, max_pixels)
    if not mask_sizes or upright.shape[:2] in mask_sizes:
        return DecodedImage(np.ascontiguousarray(upright), turned=orientation in _UPRIGHT)
    if stored.shape[:2] in mask_sizes:
        return DecodedImage(np.ascontiguousarray(stored), turned=False)
    sizes = f"{upright.shape[0]}×{upright.shape[1]}"
    if stored.shape != upright.shape:
        sizes += f" upright and {stored.shape[0]}×{stored.shape[1]} as stored"
    masks = " and ".join(f"{height}×{width}" for height, width in sorted(mask_sizes)[:3])
    raise InputError(
        f"the image is {sizes} (height × width), its masks are {masks}",
        file=path,
        remedy="give the images the masks were made on",
    )


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
            # Pillow has turned it already, as it does with TIFF alone
            return _UPRIGHT[_INVERSE.get(orientation, orientation)](pixels), pixels, orientation
    return pixels, _UPRIGHT[orientation](pixels) if orientation in _UPRIGHT else pixels, orientation


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of a photo, its EXIF orientation applied, without decoding its pixels; of any size.

    Raises:
        InputError: the file is missing, damaged or no image.
    """
    with opened(path, None) as image:
        width, height = image.size
        if image.format == "PNG" and "exif" not in image.info:
            # it may come after the pixels, and Pillow would decode them to see
            late = [data for name, data in read_chunks(path) if name == b"eXIf"]
            image.info["exif"] = bytes(late[-1]) if late else b""
        # Pillow states TIFF sizes upright already
        sideways = image.format != "TIFF" and _orientation(image) >= 5
        return (width, height) if sideways else (height, width)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 ... 8; 1 where there is none or it makes no sense."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing; the pixels may be well
        return 1
    return value if type(value) is int and value in _UPRIGHT else 1


def _rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """[H, W, 3] uint8 of a loaded image, in the frame Pillow has it.

    Large images go over in strips, so that only two copies of the pixels exist: Pillow's and ours.
    """
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    if rows >= height:
        return _rgb_strip(image, path)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = _rgb_strip(image.crop((0, top, width, bottom)), path)
    return pixels


def _rgb_strip(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would cut off at 255
        wide = np.asarray(image).astype(np.int64)
        if int(wide.min()) < 0 or int(wide.max()) > 65535:
            raise InputError("has 32-bit pixels", file=path, remedy="convert the photo to 8 or 16 bits")
        grey = ((wide + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise InputError("has floating point pixels", file=path, remedy="convert the photo to 8 or 16 bits")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"), np.uint8)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than any name may be, or with characters that no name has
        return False


def _short(name: int | str) -> str:
    text = repr(name)
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 4]}...{text[-1]}"
