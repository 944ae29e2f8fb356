"""Draws docs/failures.png: where the refiner does worst on the example photos.

Every hand-drawn true mask is spoilt in four ways (its full box, shifted, a third lost, far too thin) and refined;
shown are the results with the lowest IoU, one of each object at most. The colours: coarse mask red, truth white,
refined blue.

python examples/draw_failures.py [--weights NAME|PATH]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from draw_before_after import HEIGHT, HERE, TITLE, Mask, Picture, _read, window_around
from PIL import Image
from pycocotools import mask as rle

from transfiner_refine import load_refiner

SHOWN = 4
GAP = 10  # between pictures
COARSE, TRUTH, REFINED = (225, 50, 50), (255, 255, 255), (0, 150, 255)  # RGB
INK, PAPER = (40, 40, 40), (255, 255, 255)


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


def draw(photo: Picture, truth: Mask, coarse: Mask, refined: Mask, title: str) -> Picture:
    x0, y0, x1, y1 = window_around(truth | coarse | refined)
    width = max(120, round((x1 - x0) * HEIGHT / (y1 - y0)))
    picture = cv2.resize(photo[y0:y1, x0:x1], (width, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for mask, colour, thickness in ((coarse, COARSE, 1), (truth, TRUTH, 3), (refined, REFINED, 2)):
        inside = cv2.resize(
            mask[y0:y1, x0:x1].astype(np.uint8), (width, HEIGHT), interpolation=cv2.INTER_NEAREST
        )
        contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA)
    head = np.full((TITLE + 20, width, 3), PAPER, np.uint8)
    for i, line in enumerate(title.split("\n")):
        cv2.putText(head, line, (2, 18 + 20 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.5, INK, 1, cv2.LINE_AA)
    return np.vstack([head, picture])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="lite")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "failures.png")
    arguments = parser.parse_args()
    refiner = load_refiner(arguments.weights, device="cpu")
    truth_file = _read("truth.json")
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
            title = f"{kind}\nIoU {100 * before:.0f} -> {100 * after:.0f}"
            results.append((after, annotation["id"], photo, truth, coarse, refined, title))
    results.sort(key=lambda result: result[0])
    shown: dict[int, Picture] = {}
    for _, number, photo, truth, coarse, refined, title in results:
        if number not in shown and len(shown) < SHOWN:
            shown[number] = draw(photo, truth, coarse, refined, title)
    gap = np.full((HEIGHT + TITLE + 20, GAP, 3), PAPER, np.uint8)
    row = np.hstack([part for picture in shown.values() for part in (picture, gap)][:-1])
    Image.fromarray(row).save(arguments.output, optimize=True)
    print(arguments.output)


if __name__ == "__main__":
    main()
