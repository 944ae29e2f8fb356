"""A tiny COCO-format data set: bright blobs on dark ground, drawn anew for each test session."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_api


def make_dataset(folder: Path, images: int = 6, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    listed, annotations, coarse = [], [], []
    for i in range(1, images + 1):
        h, w = 160, 200
        image = rng.normal(60, 10, (h, w, 3))
        mask = np.zeros((h, w), np.uint8)
        centre, axes = rng.integers(60, 100, 2), rng.integers(25, 55, 2)
        cv2.ellipse(mask, centre.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 1, -1)
        image[mask > 0] = rng.normal(190, 10, (int(mask.sum()), 3))
        cv2.imwrite(str(folder / "images" / f"{i}.png"), image.clip(0, 255).astype(np.uint8))
        listed.append({"id": i, "file_name": f"{i}.png", "width": w, "height": h})
        annotations.append(
            {"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "segmentation": encode(mask), "area": 1}
        )
        shifted = np.roll(mask, (4, 6), (0, 1))
        coarse.append({"image_id": i, "category_id": 1, "segmentation": encode(shifted), "score": 0.9})
    categories = [{"id": 1, "name": "blob"}]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "coarse_detector.json").write_text(json.dumps(coarse))
    return folder


def encode(mask: np.ndarray) -> dict[str, object]:
    rle = mask_api.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "blobs")


@pytest.fixture
def new_dataset() -> Callable[..., Path]:
    """Makes another one."""
    return make_dataset
