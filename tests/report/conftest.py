"""A small job for reports."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as codec


@dataclass(frozen=True)
class Job:
    """Photos, masks before and after, and the truth.

    Attributes:
        folder: holds images/, before.json, after.json, truth.json.
        truth: true masks by (image, instance), [H, W] uint8.
    """

    folder: Path
    truth: dict[tuple[int, int], NDArray[np.uint8]]

    @property
    def files(self) -> dict[str, Path]:
        names = {"before": "before.json", "after": "after.json", "annotations": "truth.json"}
        return {"images": self.folder / "images"} | {key: self.folder / name for key, name in names.items()}


def rle(mask: NDArray[np.uint8]) -> dict[str, Any]:
    encoded = codec.encode(np.asfortranarray(mask))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Six photos with two discs each, shifted by 8 pixels before. After, the discs of photo k are off by 2 k − 2."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    truth, annotations, before, after = {}, [], [], []
    for number in range(6):
        photo = cv2.GaussianBlur(generator.integers(0, 255, (150, 220, 3)).astype(np.uint8), (0, 0), 5)
        for which, (x, radius) in enumerate(((60, 34), (160, 14))):
            disc = np.zeros((150, 220), np.uint8)
            cv2.circle(disc, (x, 70), radius, 1, -1)
            photo[disc > 0] = photo[disc > 0] // 2 + np.uint8(100)
            place = {"image_id": number + 1, "category_id": which + 1}
            truth[number, which] = disc
            annotations.append(
                place
                | {"id": len(annotations), "segmentation": rle(disc), "area": int(disc.sum()), "iscrowd": 0}
            )
            score = {"score": 0.9 - number / 10}
            before.append(place | {"segmentation": rle(np.roll(disc, 8, 1))} | score)
            after.append(place | {"segmentation": rle(np.roll(disc, 2 * number - 2, 1))} | score)
        Image.fromarray(photo).save(folder / "images" / f"photo_{number}.png")
    contents = {
        "truth.json": {
            "images": [
                {"id": n + 1, "file_name": f"photo_{n}.png", "height": 150, "width": 220} for n in range(6)
            ],
            "categories": [{"id": 1, "name": "plate"}, {"id": 2, "name": "coin <b>"}],
            "annotations": annotations,
        },
        "before.json": before,
        "after.json": after,
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return Job(folder, truth)
