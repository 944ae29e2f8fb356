"""One run on an input of extreme size, and what it took; the program that ``test_bounds.py`` runs."""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from law import Eroder
from PIL import Image
from scene import draw_bitmap, rle

from transfiner_refine.pipeline import refine_files


def giant_image(folder: Path) -> None:
    """20,000 × 20,000 pixels; masks over all of it, of one pixel, and some between."""
    side = 20_000
    tile = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    pixels = np.tile(tile, (side // 200, side // 200, 1))
    Image.fromarray(pixels).save(folder / "images" / "1.jpg", quality=50)
    total = side * side
    runs = [[0, total], [total - 1, 1], [total // 3, total // 3, total - 2 * (total // 3)]]
    runs += [[k * side * 999 + 5, 800, total - k * side * 999 - 805] for k in range(20)]
    _write(folder, [{"size": [side, side], "counts": each} for each in runs])


def many_instances(folder: Path) -> None:
    """10,000 instances on one image."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (480, 640, 3), np.uint8)).save(folder / "images" / "1.jpg")
    shapes = [rle(draw_bitmap(rng, (480, 640))) for _ in range(100)]
    _write(folder, shapes * 100)


def _write(folder: Path, masks: list[Any]) -> None:
    records = [{"image_id": 1, "category_id": 1, "segmentation": mask, "score": 0.5} for mask in masks]
    (folder / "masks.json").write_text(json.dumps(records))


KINDS: dict[str, Callable[[Path], None]] = {"giant": giant_image, "many": many_instances}


def main() -> None:
    kind, folder, making = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "make"
    if making:  # in a process of its own, whose memory does not count
        (folder / "images").mkdir()
        KINDS[kind](folder)
        return
    warnings.simplefilter("error")  # Pillow's limit would warn
    start = time.process_time()
    summary = refine_files(
        folder / "images", folder / "masks.json", folder / "out.json", refiner=Eroder(64), workers=0
    )
    seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {"instances": summary.instances, "errors": len(summary.errors), "seconds": seconds, "peak": peak}
        )
    )


if __name__ == "__main__":
    main()
