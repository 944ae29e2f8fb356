"""Draws docs/before_after.png: a real detector's masks, refined; one that was left and one that got worse included.

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
from transfiner_refine.formats import mask_from_segmentation

HERE = Path(__file__).resolve().parent
HEIGHT = 300  # of each picture, pixels
GAP = 10  # between pictures
TITLE = 30  # height of a row's title
SHOWN = (0, 3, 5, 1, 2)  # records of detector/detections.json
COLOUR = (0, 190, 255)  # RGB
MARGIN = 0.05  # of the object's longer side, around it
INK, PAPER = (40, 40, 40), (255, 255, 255)

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def enlarged(part: Picture, window: tuple[int, int, int, int], interpolation: int) -> Picture:
    """The window (x0, y0, x1, y1) of a photo or a mask, ``HEIGHT`` pixels high."""
    x0, y0, x1, y1 = window
    width = round((x1 - x0) * HEIGHT / (y1 - y0))
    return np.asarray(cv2.resize(part[y0:y1, x0:x1], (width, HEIGHT), interpolation=interpolation))


def outline(
    picture: Picture,
    mask: Mask,
    window: tuple[int, int, int, int],
    colour: tuple[int, int, int],
    thickness: int,
) -> None:
    """Draws a mask's outline into a picture of the window."""
    inside = enlarged(mask.astype(np.uint8), window, cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA)


def paint(photo: Picture, mask: Mask, window: tuple[int, int, int, int]) -> Picture:
    """The window of a photo, grey outside of the mask."""
    picture = enlarged(photo, window, cv2.INTER_CUBIC)
    inside = enlarged(mask.astype(np.uint8), window, cv2.INTER_NEAREST)
    # the surroundings lose their colour, so that the object stands out
    faded = np.repeat(0.5 * picture.mean(2, keepdims=True) + 0.5 * 255, 3, 2)
    blended = np.rint(np.where(inside[:, :, None].astype(bool), picture, faded)).astype(np.uint8)
    outline(blended, mask, window, COLOUR, 2)
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


def in_a_row(pictures: list[Picture]) -> Picture:
    gap = np.full((len(pictures[0]), GAP, 3), PAPER, np.uint8)
    return np.hstack([part for picture in pictures for part in (picture, gap)][:-1])


def with_title(picture: Picture, *lines: str) -> Picture:
    """A picture with lines of text above it, widened where they are longer."""
    needed = 4 + max(cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 1)[0][0] for line in lines)
    missing = max(0, needed - picture.shape[1])
    picture = cv2.copyMakeBorder(picture, 0, 0, 0, missing, cv2.BORDER_CONSTANT, value=PAPER)
    head = np.full((TITLE * len(lines), picture.shape[1], 3), PAPER, np.uint8)
    for i, line in enumerate(lines, 1):
        cv2.putText(head, line, (2, TITLE * i - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.6, INK, 1, cv2.LINE_AA)
    return np.vstack([head, picture])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="lite")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "before_after.png")
    arguments = parser.parse_args()
    refiner = load_refiner(arguments.weights, device="cpu")
    info, detections = read("detector/image_info.json"), read("detector/detections.json")
    names = {image["id"]: image["file_name"] for image in info["images"]}
    classes = {category["id"]: category["name"] for category in info["categories"]}
    before, after = [], []
    for number in SHOWN:
        record = detections[number]
        name = names[record["image_id"]]
        place = next(
            path for folder in ("images", "detector/images") if (path := HERE / folder / name).exists()
        )
        photo = np.asarray(Image.open(place).convert("RGB"))
        coarse = rle.decode(record["segmentation"]).astype(bool)
        refined = refiner.refine(photo, coarse)
        window = window_around(coarse | refined)
        truths = [mask for mask in true_masks(name) if overlap(mask, coarse) > 0.5]
        scores = ["", ""]
        if truths:
            truth = max(truths, key=lambda mask: overlap(mask, coarse))
            scores = [f"IoU {100 * overlap(truth, mask):.1f}" for mask in (coarse, refined)]
        before.append(
            with_title(paint(photo, coarse, window), f"{classes[record['category_id']]} {scores[0]}")
        )
        after.append(with_title(paint(photo, refined, window), scores[1] or "refined"))
    rows = (in_a_row(before), in_a_row(after))
    arguments.output.parent.mkdir(exist_ok=True)
    Image.fromarray(np.vstack(rows)).quantize(255).save(arguments.output, optimize=True)
    print(arguments.output)


def true_masks(file_name: str) -> list[Mask]:
    """The true masks of a photo, where somebody drew them."""
    truth = read("truth.json")
    ids = [image["id"] for image in truth["images"] if image["file_name"] == file_name]
    found = [each["segmentation"] for each in truth["annotations"] if each["image_id"] in ids]
    return [mask_from_segmentation(each, lambda: (0, 0)).decode().paste() for each in found]


def overlap(a: Mask, b: Mask) -> float:
    return float(np.count_nonzero(a & b) / np.count_nonzero(a | b))


def read(name: str) -> Any:
    return json.loads((HERE / name).read_text())


if __name__ == "__main__":
    main()
