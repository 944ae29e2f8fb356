"""A record whose mask has nothing to do with its box, its area or its image is named and left as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_scenes import faults_of, instances_of, written
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from transfiner_refine.formats import open_source
from transfiner_refine.formats.segmentation import _area, _clipped
from transfiner_refine.masks import Mask, MaskWindow

SIZE = (60, 100)
BOX = [30, 10, 25, 40]  # x, y, width, height
POLYGON = [[30, 10, 55, 10, 55, 50, 30, 50]]


def rle(box: list[int] = BOX, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    x, y, width, height = box
    mask = Mask.from_window(MaskWindow(np.ones((height, width), bool), x, y, size))
    return {"size": list(size), "counts": mask.counts}


def row_by_row() -> dict[str, Any]:
    flat = np.zeros(SIZE, bool)
    flat[10:50, 30:55] = True
    wrong = Mask.from_window(MaskWindow(flat.ravel().reshape(SIZE[::-1]).T, 0, 0, SIZE))
    return {"size": list(SIZE), "counts": wrong.counts}


def opened(tmp_path: Path, records: list[dict[str, Any]], turn: int = 1, **options: Any) -> Any:
    """An annotation file of one image, whose records are told to the pixel."""
    image = {"id": 1, "file_name": "1.jpg", "height": SIZE[0], "width": SIZE[1]}
    common = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    annotations = [{"id": n, **common, **record} for n, record in enumerate(records)]
    document = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "cup"}]}
    exif = Image.Exif()
    exif[0x0112] = turn
    (tmp_path / "images").mkdir(exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images/1.jpg", exif=exif)
    return open_source(written(tmp_path, document), tmp_path / "images", **options)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"segmentation": row_by_row(), "bbox": BOX}, "the box of its mask is .* but bbox says"),
        ({"segmentation": rle([0, 0, 12, 20]), "bbox": BOX}, "but bbox says"),  # of half the resolution
        ({"segmentation": rle(), "area": 90}, "1000 pixels, but area says 90"),
        ({"segmentation": [[v * 1.9 for v in POLYGON[0]]]}, "% of its polygons lie outside its 100×60 image"),
        ({"segmentation": [[0.3, 0.16, 0.55, 0.16, 0.55, 0.84, 0.3, 0.84]]}, "lie between 0 and 1"),
    ],
)
def test_a_record_that_contradicts_itself_is_named_and_keeps_its_bytes(
    tmp_path: Path, record: dict[str, Any], reason: str
) -> None:
    source = opened(tmp_path, [record, {"segmentation": rle()}])
    (fault,) = faults_of(source)
    assert fault.startswith(f"{tmp_path}/masks.json: annotation id 0: ")
    assert re.search(reason, fault)
    assert [each.instance_id for each in instances_of(source)] == [1]
    source.write(tmp_path / "out.json", {1: Mask(SIZE, rle([0, 0, 5, 5])["counts"])})
    before, after = (json.loads((tmp_path / name).read_text()) for name in ("masks.json", "out.json"))
    assert after["annotations"][0] == before["annotations"][0]
    assert after["annotations"][1] != before["annotations"][1]


@pytest.mark.parametrize(
    "record",
    [
        {"segmentation": rle(), "bbox": BOX, "area": 1000},
        {"segmentation": rle(), "bbox": [29.4, 9.6, 26.1, 41], "area": 1012.5},
        {"segmentation": rle(), "bbox": BOX, "area": 31},  # only the box was scaled along
        {"segmentation": rle(), "bbox": [0, 0, 0, 0], "area": 0},
        {"segmentation": rle(), "bbox": None, "area": "1000"},
        {"segmentation": rle(), "bbox": [30, 10, "25", 40]},
        {"segmentation": [[30, -2, 101.5, -2, 101.5, 61, 30, 61]], "bbox": [30, -2, 71.5, 63]},
        {"segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]], "area": 1},
        {"segmentation": rle([50, 30, 2, 2]), "bbox": [50, 31, 2, 1]},
    ],
)
def test_ordinary_sloppiness_passes(tmp_path: Path, record: dict[str, Any]) -> None:
    assert faults_of(opened(tmp_path, [record])) == []


def test_boxes_of_detectors_may_be_larger_than_their_masks_but_not_elsewhere(tmp_path: Path) -> None:
    opened(tmp_path, [{"segmentation": rle()}])
    result = {"image_id": 1, "category_id": 1, "score": 0.5}
    boxes = [[20, 0, 60, 60], [31, 11, 22, 38], [0, 0, 30, 60]]
    records = [{**result, "segmentation": rle(), "bbox": box} for box in boxes]
    (fault,) = faults_of(open_source(written(tmp_path, records, "dt.json"), tmp_path / "images"))
    assert "record 2: the box of its mask is [30, 10, 25, 40]" in fault


def test_polygons_of_a_turned_image_are_named_and_read_with_the_orientation(tmp_path: Path) -> None:
    beyond, within = [[10, 70, 50, 70, 50, 95, 10, 95]], [[10, 20, 40, 20, 40, 50, 10, 50]]
    records = [{"segmentation": beyond}, {"segmentation": within}, {"segmentation": rle()}]
    for exif, named in ((6, [0, 1]), (1, [0])):
        faults = faults_of(opened(tmp_path, records, exif))
        assert all(f"id {number}" in fault for number, fault in zip(named, faults, strict=True))
    turned = instances_of(opened(tmp_path, records[:2], 6, orientation="upright"))
    assert [each.mask.size for each in turned] == [SIZE[::-1]] * 2
    assert turned[0].mask.box == (10, 70, 50, 95)
    stored = instances_of(opened(tmp_path, records[1:], 6, orientation="stored"))
    assert [each.mask.size for each in stored] == [SIZE] * 2


@given(st.lists(st.tuples(st.integers(-40, 140), st.integers(-40, 100)), min_size=3, max_size=3))
def test_a_clipped_triangle_has_the_area_of_its_pixels_in_the_image(points: list[tuple[int, int]]) -> None:
    triangle = np.array(points, np.float64)
    (ax, ay), (bx, by), (cx, cy) = triangle
    ys, xs = np.mgrid[: SIZE[0] * 4, : SIZE[1] * 4] / 4 + 0.125  # [4H, 4W] sample points

    def side(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
        return (x1 - x0) * (ys - y0) - (y1 - y0) * (xs - x0)

    sides = np.stack((side(ax, ay, bx, by), side(bx, by, cx, cy), side(cx, cy, ax, ay)))
    counted = np.count_nonzero((sides > 0).all(0) | (sides < 0).all(0)) / 16
    assert _area(_clipped(triangle, SIZE)) == pytest.approx(counted, abs=20)
