"""Annotated scenes with detections, drawn from a seed: what the evaluation tests evaluate, and by what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as codec

HEIGHT, WIDTH = 200, 260


def blob(generator: np.random.Generator, size: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[np.uint8]:
    """A random rotated ellipse with a bite, perhaps cut by the image's border: [H, W] 0/1."""
    height, width = size
    mask = np.zeros(size, np.uint8)
    centre = (int(generator.integers(0, width)), int(generator.integers(0, height)))
    axes = (int(generator.integers(2, 3 + width // 3)), int(generator.integers(2, 3 + height // 3)))
    cv2.ellipse(mask, centre, axes, float(generator.uniform(0, 180)), 0, 360, 1, -1)
    bite = (centre[0] + axes[0] // 2, centre[1])
    cv2.circle(mask, bite, max(1, min(axes) // 2), 0, -1)
    return mask


def disturbed(mask: NDArray[np.uint8], generator: np.random.Generator, pixels: int) -> NDArray[np.uint8]:
    """The mask shifted by up to so many pixels either way."""
    dx, dy = generator.integers(-pixels, pixels + 1, 2)
    shift = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    return np.asarray(cv2.warpAffine(mask, shift, mask.shape[::-1], flags=cv2.INTER_NEAREST), np.uint8)


def rle(mask: NDArray[np.uint8]) -> dict[str, Any]:
    """Compressed RLE with string counts."""
    encoded = codec.encode(np.asfortranarray(mask))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def plain_boundary(mask: NDArray[np.uint8], ratio: float) -> NDArray[np.uint8]:
    """Cheng et al. 2021: pad by one, erode d times by 3×3, take what went away."""
    height, width = mask.shape
    d = max(1, round(ratio * np.sqrt(height**2 + width**2)))
    eroded = np.pad(mask, 1)
    for _ in range(d):
        eroded = cv2.erode(eroded, np.ones((3, 3), np.uint8))
    return mask - eroded[1:-1, 1:-1]


def scenes(
    seed: int = 0, images: int = 8, detections: int = 30, shift: int = 4
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and results: crowds, tied scores, an image without truth, one without detections."""
    generator = np.random.default_rng(seed)
    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        masks: list[tuple[int, NDArray[np.uint8]]] = []
        for _ in range(0 if image == 1 else int(generator.integers(1, 8))):
            mask, category = blob(generator), int(generator.integers(1, 4))
            if not mask.any():
                continue
            masks.append((category, mask))
            truth.append(
                {
                    "id": len(truth),  # 0 is a valid id
                    "image_id": image,
                    "category_id": category,
                    "segmentation": rle(mask),
                    "area": int(mask.sum()),
                    "bbox": codec.toBbox(rle(mask)).tolist(),
                    "iscrowd": int(len(truth) % 6 == 4),
                }
            )
        for _ in range(0 if image == 2 else detections):
            if masks and generator.random() < 0.7:
                category, mask = masks[int(generator.integers(len(masks)))]
                mask = disturbed(mask, generator, shift)
            else:
                category, mask = int(generator.integers(1, 4)), blob(generator)
            results.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "segmentation": rle(mask),
                    "score": float(generator.integers(1, 12)) / 10,  # many ties
                }
            )
    return {
        "images": [
            {"id": image, "file_name": f"{image}.jpg", "height": HEIGHT, "width": WIDTH}
            for image in range(1, images + 1)
        ],
        "annotations": truth,
        "categories": [{"id": key, "name": f"class {key}"} for key in range(1, 5)],
    }, results


def write(folder: Path, name: str, content: Any) -> Path:
    """The content as a JSON file."""
    path = folder / name
    path.write_text(json.dumps(content))
    return path
