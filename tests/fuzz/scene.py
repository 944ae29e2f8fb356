"""Small sound scenes, from which every hostile input starts: photos, and bitmaps of instances on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

Bitmap = NDArray[np.bool_]

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog, größer"}, {"id": 9, "name": "x y"}]


@dataclass(frozen=True)
class Photo:
    """A photo and what is on it.

    Attributes:
        image_id: its id; its file is named after it.
        file_name: its name in the folder.
        bitmaps: [H, W] of each instance; they may overlap, be empty or cover the photo.
        size: (height, width), pixels.
    """

    image_id: int
    file_name: str
    bitmaps: tuple[Bitmap, ...]
    size: tuple[int, int]


def draw_scene(rng: np.random.Generator, *, largest: int = 40, disjoint: bool = False) -> list[Photo]:
    """One to four photos with up to five instances each, at least one instance in all."""
    photos = []
    for image_id in range(1, int(rng.integers(1, 5)) + 1):
        size = (1, 1) if rng.random() < 0.05 else (side(rng, largest), side(rng, largest))
        count = int(rng.integers(0 if photos else 1, 6))
        bitmaps = [draw_bitmap(rng, size) for _ in range(count)]
        if disjoint:
            taken = np.zeros(size, bool)
            for position, bitmap in enumerate(bitmaps):
                bitmaps[position] = bitmap & ~taken
                taken |= bitmap
            bitmaps = [bitmap for bitmap in bitmaps if bitmap.any()]
        photos.append(Photo(image_id, f"{image_id}.png", tuple(bitmaps), size))
    if not any(photo.bitmaps for photo in photos):
        whole = np.ones(photos[0].size, bool)
        photos[0] = Photo(photos[0].image_id, photos[0].file_name, (whole,), photos[0].size)
    return photos


def side(rng: np.random.Generator, largest: int) -> int:
    return int(rng.integers(1, largest + 1))


def draw_bitmap(rng: np.random.Generator, size: tuple[int, int]) -> Bitmap:
    """An ellipse mostly; now and then one pixel, everything, nothing or noise."""
    height, width = size
    kind = rng.random()
    bitmap = np.zeros(size, bool)
    if kind < 0.05:
        bitmap[int(rng.integers(height)), int(rng.integers(width))] = True
    elif kind < 0.1:
        bitmap[:] = True
    elif kind < 0.15:
        pass
    elif kind < 0.2:
        bitmap = rng.random(size) < rng.random()
    else:
        y, x = rng.random(2) * size
        a, b = 1 + rng.random(2) * (height / 2, width / 2)
        rows, columns = np.ogrid[:height, :width]
        bitmap = ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 <= 1
    return bitmap


def write_photos(photos: list[Photo], folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for photo in photos:
        pixels = rng.integers(0, 256, (*photo.size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / photo.file_name, compress_level=1)


def rle(bitmap: Bitmap) -> dict[str, Any]:
    """The mask as pycocotools writes it."""
    encoded = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    return {"size": list(bitmap.shape), "counts": encoded["counts"].decode()}


def runs(bitmap: Bitmap) -> list[int]:
    """The mask's runs down the columns, background first."""
    flat = bitmap.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return [0, *lengths] if flat[0] else lengths


def eroded(bitmap: Bitmap) -> Bitmap:
    """What the refiner of these tests makes of a mask: its inner pixels, or itself where it has none."""
    framed = np.pad(bitmap, 1)
    inner = bitmap & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return inner if inner.any() else bitmap
