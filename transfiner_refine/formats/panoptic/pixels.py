"""The PNGs of COCO panoptic: one segment id a pixel, its three bytes as red, green and blue, lowest first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.formats.png_chunks import read_header
from transfiner_refine.images import MAX_IMAGE_PIXELS, opened, read_chunks

__all__ = ["LARGEST_ID", "id_boxes", "read_ids", "write_ids"]

LARGEST_ID = (1 << 24) - 1
_RGB, _RGBA = 2, 6  # colour types of the PNG header


def read_ids(path: Path, max_pixels: int = MAX_IMAGE_PIXELS) -> NDArray[np.uint32]:
    """[H, W] segment ids, 0 where there is no segment.

    Raises:
        InputError: missing, damaged, no PNG, not in 8-bit colours, or larger than ``max_pixels``.
    """
    header = read_header(read_chunks(path))
    if header.colour not in (_RGB, _RGBA) or header.depth != 8:
        raise InputError(
            "is no panoptic PNG: it has one channel, a palette or 16 bits",
            file=path,
            remedy="save ids as colours, R + 256 G + 65536 B",
        )
    with opened(path, max_pixels) as image:
        image.load()
        colours = np.asarray(image).astype(np.uint32)
    return (colours[..., 0] | colours[..., 1] << 8 | colours[..., 2] << 16).astype(np.uint32)


def write_ids(path: Path, ids: NDArray[np.uint32]) -> None:
    """Writes [H, W] segment ids; folders are made as needed.

    Raises:
        OSError: the disk refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.stack((ids & 255, ids >> 8 & 255, ids >> 16), axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(path, "PNG")


def id_boxes(ids: NDArray[np.uint32]) -> dict[int, tuple[int, list[int]]]:
    """Area and box [x, y, width, height] of every id but 0, pixels."""
    found, flat = np.unique(ids, return_inverse=True)
    flat = flat.reshape(ids.shape)
    areas = np.bincount(flat.ravel())
    boxes = {}
    rows = _extent(flat, len(found))
    columns = _extent(flat.T, len(found))
    for position, value in enumerate(found.tolist()):
        if value:
            (y0, y1), (x0, x1) = rows[position], columns[position]
            boxes[value] = int(areas[position]), [x0, y0, x1 - x0, y1 - y0]
    return boxes


def _extent(labels: NDArray[np.intp], count: int) -> list[tuple[int, int]]:
    """First row and the row after the last of each label 0 ... count - 1."""
    number = np.arange(len(labels))
    first = np.full(count, len(labels))
    last = np.zeros(count, np.int64)
    lines = np.repeat(number, labels.shape[1])
    np.minimum.at(first, labels.ravel(), lines)
    np.maximum.at(last, labels.ravel(), lines)
    return [(int(low), int(high) + 1) for low, high in zip(first, last, strict=True)]
