"""Plain PNGs from any source: one mask a file, or one id map an image; and the two formats' entries.

A mask a file, ``IMAGE_STEM/0001.png`` and on, is 0 and 255 (soft masks that nobody refined stay soft) and may overlap
others, so every mask arrives as it is. A folder for each image, because ``a_1_0001.png`` could be one of ``a`` or of
``a_1``. A map, ``IMAGE_STEM.png``, has 8 bits where 255 instances are enough and 16 elsewhere.

Neither has a place for classes, scores, or what is a crowd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.id_map_writing import lay_image
from transfiner_refine.formats.palette import write_grey
from transfiner_refine.formats.png import PngFolderSource
from transfiner_refine.formats.records import Format, Instance, OpenOptions, Source, Written
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder

__all__ = ["ID_MAPS", "PNG_FOLDER"]

_LARGEST_ID = 65535
_WHITE = 255


def recognise(path: Path) -> bool:
    """Any folder, so this format comes last; one without PNGs is then refused by the reader, which says why."""
    return path.is_dir()


def open_png(path: Path, options: OpenOptions) -> PngFolderSource:
    """Reads a folder of masks and maps.

    Raises:
        InputError: no such folder, no PNG in it, or none of them belongs to a photo.
    """
    if options.image_info is not None:
        raise InputError("PNG masks find their photos by name", file=path, remedy="leave --image-info out")
    return PngFolderSource(
        path, options.images, png_kind=options.png_kind, max_pixels=options.max_image_pixels
    )


def open_id_maps(path: Path, options: OpenOptions) -> PngFolderSource:
    """Reads a folder whose PNGs are all maps.

    Raises:
        InputError: as for ``open_png``.
    """
    return open_png(path, replace(options, png_kind="id-map"))


def write_masks(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes one PNG an instance.

    Raises:
        OutputError: the disk refused.
    """
    conversion = Conversion(source, results)
    with atomic_folder(output) as draft:
        for stem, _, image in conversion:
            for number, item in enumerate(image.instances, 1):
                write_grey(draft / stem / f"{number:04d}.png", _grey(item))
    return conversion.written()


def write_id_maps(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes one map an image; overlaps go to the higher score.

    Raises:
        OutputError: the disk refused.
    """
    conversion = Conversion(source, results)
    with atomic_folder(output) as draft:
        for stem, size, image in conversion:
            background = np.zeros(size, np.uint16)
            laid = lay_image(conversion, image, image.instances, background, _LARGEST_ID)
            wide = int(laid.values.max()) > np.iinfo(np.uint8).max
            write_grey(draft / f"{stem}.png", laid.values if wide else laid.values.astype(np.uint8))
    return conversion.written()


def _grey(item: Instance) -> NDArray[Any]:
    """[H, W] uint8: 0 and 255, or the shades of a soft mask."""
    full = item.mask.decode().paste()
    if full.dtype == bool:
        return np.where(full, _WHITE, 0).astype(np.uint8)
    return np.rint(full * _WHITE).astype(np.uint8)


def _never(path: Path) -> bool:  # noqa: ARG001
    """PNG folders are recognised as "png", which looks at each file."""
    return False


PNG_FOLDER = Format("png", "PNG masks or id maps", True, recognise, open_png, write_masks)
ID_MAPS = Format("id-maps", "PNG id maps (8 or 16 bits)", True, _never, open_id_maps, write_id_maps)
