"""Draws docs/fine_tuning.png: a part of the test half with the detector's masks, refined ones, and fine-tuned ones.

python examples/fine_tune/draw_result.py bricks/test refined_shipped.json refined_tuned.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from transfiner_refine.refiner import window_of
from transfiner_refine.report import paint_masks

DOCS = Path(__file__).resolve().parents[2] / "docs"
SHOWN = np.s_[150:400, 50:256]  # rows and columns of the test photo
ZOOM = 2
GAP, HEAD = 12, 32  # pixels between the pictures, and above them for their titles
COLOURS = 128  # of the PNG's palette; the photo is grey

Picture = NDArray[np.uint8]


def panel(photo: Picture, results: list[dict[str, Any]], title: str) -> Picture:
    """The shown part of the photo with the masks on it, under a title."""
    part = enlarged(photo[SHOWN], cv2.INTER_CUBIC)
    masks = (enlarged(rle.decode(result["segmentation"])[SHOWN], cv2.INTER_NEAREST) for result in results)
    painted = paint_masks(part, [window_of(mask.astype(bool)) for mask in masks])
    head = np.full((HEAD, part.shape[1], 3), 255, np.uint8)
    cv2.putText(head, title, (2, HEAD - 11), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (30, 30, 30), 1, cv2.LINE_AA)
    return np.vstack([head, painted])


def enlarged(picture: Picture, interpolation: int) -> Picture:
    return cv2.resize(np.ascontiguousarray(picture), None, fx=ZOOM, fy=ZOOM, interpolation=interpolation)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("test", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("shipped", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("tuned", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DOCS / "fine_tuning.png",
    help="The picture.  [default: docs/fine_tuning.png]",
)
def main(test: Path, shipped: Path, tuned: Path, output: Path) -> None:
    """Draw the masks of the folder TEST, refined with SHIPPED and with TUNED weights, side by side."""
    photo = np.asarray(Image.open(next((test / "images").iterdir())).convert("RGB"))
    titles = {
        "the detector's masks": test / "coarse_detector.json",
        "refined, shipped weights": shipped,
        "refined, fine-tuned weights": tuned,
    }
    panels = [panel(photo, json.loads(file.read_text()), title) for title, file in titles.items()]
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    row = np.hstack([part for one in panels for part in (one, gap)][:-1])
    Image.fromarray(row).quantize(COLOURS, dither=Image.Dither.NONE).save(output, optimize=True)
    click.echo(output)


if __name__ == "__main__":
    main()
