"""Makes a small data set to fine-tune on: the bricks of a wall, and what a weak detector takes them for.

The photo is ``skimage.data.brick``, a sample picture of scikit-image (CC0, from <https://cc0textures.com>). Its left
half is for training, its right half for testing; a brick that the cut goes through is in neither. Everything is
computed from the photo's pixels, and nothing is random:

* the true masks by watershed on the photo's gradient, from seeds in the dark bricks and in the pale joints;
* the detector's masks from the photo at a quarter of its size: what is darker than its surroundings is brick, and each
  connected piece is reported as its upright box. So a leaning brick takes in mortar and corners of its neighbours.

    pip install scikit-image
    python examples/fine_tune/make_data.py --output bricks
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from skimage.filters import sobel
from skimage.segmentation import watershed

PHOTO = "wall.png"
CATEGORY = {"id": 1, "name": "brick"}
SURELY_BRICK, SURELY_JOINT = 105, 135  # grey levels up to and from which a pixel is a seed
LEAST_AREA = 600  # pixels; smaller pieces are scraps at the photo's border
SHRINK = 4  # the detector sees the photo this many times smaller
SURROUNDINGS = 15  # side of what the detector compares a pixel with, in pixels of the small photo

Grey = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Detection:
    """One mask of the detector.

    Attributes:
        mask: H×W bool, an upright box.
        score: share of the box that looks like brick.
    """

    mask: Mask
    score: float


def pieces(mask: Mask) -> list[Mask]:
    """The connected pieces of a mask, from top to bottom."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    return [labels == label for label in range(1, count)]


def opened(mask: Mask, side: int) -> Mask:
    """Without what is narrower than ``side`` pixels."""
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((side, side), np.uint8)).astype(
        bool
    )


def filled(mask: Mask) -> Mask:
    """Without holes."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, cv2.FILLED).astype(bool)


def true_masks(photo: Grey) -> list[Mask]:
    """The bricks, pixel by pixel: H×W bool each."""
    seeds = np.zeros(photo.shape, np.int32)
    seeds[photo < SURELY_BRICK], seeds[photo > SURELY_JOINT] = 1, 2
    brick = watershed(sobel(photo), seeds) == 1
    return [filled(piece) for piece in pieces(opened(brick, 5)) if np.count_nonzero(piece) >= LEAST_AREA]


def detect(photo: Grey) -> list[Detection]:
    """The weak detector: it looks at the photo alone."""
    height, width = (side // SHRINK for side in photo.shape)
    small = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    dark = opened(small < cv2.blur(small, (SURROUNDINGS, SURROUNDINGS)), 3)
    found = []
    for piece in pieces(dark):
        if np.count_nonzero(piece) * SHRINK**2 < LEAST_AREA:
            continue
        x, y, w, h = cv2.boundingRect(piece.astype(np.uint8))
        mask = np.zeros(photo.shape, bool)
        mask[SHRINK * y : SHRINK * (y + h), SHRINK * x : SHRINK * (x + w)] = True
        found.append(Detection(mask, round(np.count_nonzero(piece) / (w * h), 3)))
    return found


def encode(mask: Mask) -> dict[str, Any]:
    """Compressed RLE with string counts."""
    coded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(n) for n in coded["size"]], "counts": coded["counts"].decode()}


def record(mask: Mask, **more: Any) -> dict[str, Any]:
    """What an annotation and a result have in common, and ``more``."""
    segmentation = encode(mask)
    return {
        "image_id": 1,
        "category_id": CATEGORY["id"],
        "bbox": [float(side) for side in rle.toBbox(segmentation)],
        "segmentation": segmentation,
        **more,
    }


def write_half(folder: Path, photo: Grey, bricks: list[Mask], found: list[Detection]) -> None:
    """Writes one half as ``transfiner-refine train --dataset`` wants it."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(folder / "images" / PHOTO)
    height, width = photo.shape
    annotations = {
        "images": [{"id": 1, "file_name": PHOTO, "height": height, "width": width}],
        "annotations": [
            record(mask, id=number, area=int(np.count_nonzero(mask)), iscrowd=0)
            for number, mask in enumerate(bricks, 1)
        ],
        "categories": [CATEGORY],
    }
    results = [record(detection.mask, score=detection.score) for detection in found]
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "coarse_detector.json").write_text(json.dumps(results))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("bricks"),
    show_default=True,
    help="Receives train/ and test/, each with images/, annotations.json and coarse_detector.json.",
)
@click.option(
    "--annotated",
    type=click.IntRange(min=1),
    help="Keep the annotations of this many bricks of the training half, spread over it.  [default: all]",
)
def main(output: Path, annotated: int | None) -> None:
    """Make a data set of bricks from a sample photo of scikit-image."""
    wall = np.asarray(skimage.data.brick())
    middle = wall.shape[1] // 2
    bricks = true_masks(wall)
    for name, half in {"train": np.s_[:, :middle], "test": np.s_[:, middle:]}.items():
        photo = np.ascontiguousarray(wall[half])
        whole = [mask[half] for mask in bricks if mask[half].sum() == mask.sum()]
        if name == "train" and annotated is not None and annotated < len(whole):
            whole = [whole[i] for i in np.linspace(0, len(whole) - 1, annotated).round().astype(int)]
        found = detect(photo)
        write_half(output / name, photo, whole, found)
        click.echo(f"{output / name}: {len(whole)} bricks, {len(found)} detections")


if __name__ == "__main__":
    main()
