"""Draws docs/before_after.png: the example objects with their coarse and their refined masks.

python examples/draw_before_after.py [--weights NAME|PATH]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from transfiner_refine import load_refiner

HERE = Path(__file__).resolve().parent
HEIGHT = 340  # of each picture, pixels
GAP = 10  # between pictures
TITLE = 30  # height of a row's title
SHOWN = (("astronaut.jpg", 1), ("camera.jpg", 1), ("coffee.jpg", 3), ("coffee.jpg", 4))  # photo, category id
COLOUR = (0, 190, 255)  # RGB
MARGIN = 0.05  # of the object's longer side, around it
INK, PAPER = (40, 40, 40), (255, 255, 255)

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def paint(photo: Picture, mask: Mask, window: tuple[int, int, int, int]) -> Picture:
    """The window (x0, y0, x1, y1) of a photo, ``HEIGHT`` pixels high, grey outside of the mask."""
    x0, y0, x1, y1 = window
    width = round((x1 - x0) * HEIGHT / (y1 - y0))
    picture = cv2.resize(photo[y0:y1, x0:x1], (width, HEIGHT), interpolation=cv2.INTER_CUBIC)
    inside = cv2.resize(mask[y0:y1, x0:x1].astype(np.uint8), (width, HEIGHT), interpolation=cv2.INTER_NEAREST)
    # the surroundings lose their colour, so that the object stands out
    faded = np.repeat(0.5 * picture.mean(2, keepdims=True) + 0.5 * 255, 3, 2)
    blended = np.rint(np.where(inside[:, :, None].astype(bool), picture, faded)).astype(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(blended, contours, -1, COLOUR, 2, cv2.LINE_AA)
    return blended


def window_around(mask: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    margin = round(MARGIN * max(np.ptp(rows), np.ptp(columns)))
    height, width = mask.shape
    return (
        max(0, int(columns[0]) - margin),
        max(0, int(rows[0]) - margin),
        min(width, int(columns[-1]) + 1 + margin),
        min(height, int(rows[-1]) + 1 + margin),
    )


def with_title(pictures: list[Picture], title: str) -> Picture:
    gap = np.full((HEIGHT, GAP, 3), PAPER, np.uint8)
    row = np.hstack([part for picture in pictures for part in (picture, gap)][:-1])
    head = np.full((TITLE, row.shape[1], 3), PAPER, np.uint8)
    cv2.putText(head, title, (2, TITLE - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.6, INK, 1, cv2.LINE_AA)
    return np.vstack([head, row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="lite")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "before_after.png")
    arguments = parser.parse_args()
    refiner = load_refiner(arguments.weights, device="cpu")
    names = {image["id"]: image["file_name"] for image in _read("image_info.json")["images"]}
    detections = {(names[d["image_id"]], d["category_id"]): d for d in _read("detections.json")}
    before, after = [], []
    for name, category in SHOWN:
        photo = np.asarray(Image.open(HERE / "images" / name).convert("RGB"))
        coarse = rle.decode(detections[name, category]["segmentation"]).astype(bool)
        refined = refiner.refine(photo, coarse[None])[0]
        window = window_around(coarse | refined)
        before.append(paint(photo, coarse, window))
        after.append(paint(photo, refined, window))
    rows = with_title(before, "before: coarse masks"), with_title(after, "after: transfiner-refine")
    arguments.output.parent.mkdir(exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(arguments.output, optimize=True)
    print(arguments.output)


def _read(name: str) -> Any:
    return json.loads((HERE / name).read_text())


if __name__ == "__main__":
    main()
