"""Draws docs/failures.png: where the refiner does worst on the example photos.

Every hand-drawn true mask is spoilt in four ways (its full box, shifted, a third lost, far too thin) and refined;
shown are the results with the lowest IoU, one of each object at most. Above each its IoU before and
after. Colours: coarse mask red, truth white, refined blue.

python examples/draw_failures.py [--weights NAME|PATH]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from draw_before_after import (
    HERE,
    Mask,
    Picture,
    enlarged,
    in_a_row,
    outline,
    read,
    window_around,
    with_title,
)
from PIL import Image
from pycocotools import mask as rle

from transfiner_refine import load_refiner

SHOWN = 4
COARSE, TRUTH, REFINED = (225, 50, 50), (255, 255, 255), (0, 150, 255)  # RGB


def full_box(mask: Mask) -> Mask:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def shifted(mask: Mask) -> Mask:
    rows, columns = mask.any(1).sum(), mask.any(0).sum()
    step = round(0.08 * float(np.sqrt(rows * columns)))
    moved = np.zeros_like(mask)
    moved[step:, step:] = mask[:-step, :-step]
    return moved


def third_lost(mask: Mask) -> Mask:
    kept, rows = mask.copy(), np.flatnonzero(mask.any(1))
    kept[: rows[0] + len(rows) // 3] = False
    return kept


def thin(mask: Mask) -> Mask:
    """Eroded until half of its area is left."""
    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    return np.asarray(distance > np.median(distance[mask]))


SPOILT: dict[str, Callable[[Mask], Mask]] = {
    "full box": full_box,
    "shifted": shifted,
    "a third lost": third_lost,
    "too thin": thin,
}


def iou(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / (a | b).sum())


def draw(photo: Picture, truth: Mask, coarse: Mask, refined: Mask) -> Picture:
    window = window_around(truth | coarse | refined)
    picture = enlarged(photo, window, cv2.INTER_CUBIC)
    for mask, colour, thickness in ((coarse, COARSE, 1), (truth, TRUTH, 3), (refined, REFINED, 2)):
        outline(picture, mask, window, colour, thickness)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="lite")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "failures.png")
    arguments = parser.parse_args()
    refiner = load_refiner(arguments.weights, device="cpu")
    truth_file = read("truth.json")
    names = {image["id"]: image["file_name"] for image in truth_file["images"]}
    results = []
    for annotation in truth_file["annotations"]:
        name = names[annotation["image_id"]]
        photo = np.asarray(Image.open(HERE / "images" / name).convert("RGB"))
        truth = rle.decode(annotation["segmentation"]).astype(bool)
        for kind, spoil in SPOILT.items():
            coarse = spoil(truth)
            refined = refiner.refine(photo, coarse[None])[0]
            before, after = iou(coarse, truth), iou(refined, truth)
            print(f"{name} {annotation['id']} {kind}: {100 * before:.1f} -> {100 * after:.1f}")
            title = (kind, f"{100 * before:.0f} -> {100 * after:.0f}")
            results.append((after, annotation["id"], photo, truth, coarse, refined, title))
    results.sort(key=lambda result: result[0])
    shown: dict[int, Picture] = {}
    for _, number, photo, truth, coarse, refined, title in results:
        if number not in shown and len(shown) < SHOWN:
            shown[number] = with_title(draw(photo, truth, coarse, refined), *title)
    Image.fromarray(in_a_row(list(shown.values()))).save(arguments.output, optimize=True)
    print(arguments.output)


if __name__ == "__main__":
    main()
