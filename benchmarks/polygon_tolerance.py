"""How much masks change when they are written as polygons of a tolerance: IoU, area and points of dev-val masks.

    python benchmarks/polygon_tolerance.py DEVVAL --tolerance 0.5 --tolerance 0.75

IoU is that of COCO's reading (pycocotools) with the mask; points are counted before (outline along the edges of pixels)
and after. Masks of fewer pixels than ``--min-area`` are a row of their own.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from devsets import load_dev_sets
from numpy.typing import NDArray

from transfiner_refine.formats.polygons import coco_polygons
from transfiner_refine.formats.segmentation import mask_from_segmentation
from transfiner_refine.masks import Mask


def measured(mask: Mask, tolerance: float) -> tuple[float, float, int, int]:
    """IoU with the mask, share of area gained (negative: lost), points before and after."""
    found = coco_polygons(mask, tolerance)
    again = mask_from_segmentation(found, lambda: mask.size)
    differing = again.differing(mask)
    either = (again.area + mask.area + differing) / 2
    before, after = (sum(map(len, polygons)) // 2 for polygons in (coco_polygons(mask), found))
    return 1 - differing / either, again.area / mask.area - 1, before, after


def line(rows: NDArray[np.float64]) -> str:
    iou, gained, before, after = rows.T
    return (
        f"{len(rows):6d} masks: IoU mean {iou.mean():.4f}, 1 % {np.quantile(iou, 0.01):.4f}, least {iou.min():.4f}; "
        f"area {100 * gained.mean():+.3f} %, most lost {100 * -gained.min():.2f} %; "
        f"points {np.median(before):.0f} -> {np.median(after):.0f}"
    )


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--tolerance", "tolerances", type=float, multiple=True, default=(0.5, 0.75, 1.0), show_default=True
)
@click.option("--min-area", default=1024, show_default=True, help="Pixels.")
def main(folder: Path, tolerances: tuple[float, ...], min_area: int) -> None:
    """Prints a line a tolerance and size of mask; FOLDER has the dev-val sets."""
    masks = [
        each.mask
        for dev_set in load_dev_sets(folder)
        for each in dev_set.annotations.instances
        if each.mask.area > 0
    ]
    for tolerance in tolerances:
        rows = np.array([measured(mask, tolerance) for mask in masks])
        large = np.array([mask.area >= min_area for mask in masks])
        for name, which in ((f"from {min_area} px", large), ("smaller", ~large)):
            click.echo(f"tolerance {tolerance:g}, {name}: {line(rows[which])}")


if __name__ == "__main__":
    main()
