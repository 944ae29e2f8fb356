"""Which detection is taken for which true instance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenes import HEIGHT, WIDTH, rle, write

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.coco_files import Annotations, Entry, load_annotations, load_results
from transfiner_refine.evaluation.matched import check_same_detections, match_by_ids, match_by_iou


def square(left: int, side: int = 40) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10 : 10 + side, left : left + side] = 1
    return rle(mask)


def load(
    folder: Path, truth: list[dict[str, Any]], results: list[dict[str, Any]]
) -> tuple[Annotations, list[Entry]]:
    """Annotations and detections of two images, with what is not given filled in."""
    usual = {"image_id": 1, "category_id": 1}
    content = {
        "images": [{"id": image, "height": HEIGHT, "width": WIDTH} for image in (1, 2)],
        "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
        "annotations": [usual | {"id": 10 + number} | entry for number, entry in enumerate(truth)],
    }
    annotations = load_annotations(write(folder, "truth.json", content))
    return annotations, load_results(
        write(folder, "results.json", [usual | entry for entry in results]), annotations
    )


def test_the_best_pairs_come_first_and_nobody_is_taken_twice(tmp_path: Path) -> None:
    annotations, detections = load(
        tmp_path,
        [{"segmentation": square(10)}, {"segmentation": square(30)}],
        [{"segmentation": square(24)}, {"segmentation": square(28)}, {"segmentation": square(200)}],
    )
    # 28 fits the second best of all; the first must then take 24, which fits the second better
    assert match_by_iou(annotations, detections) == [(0, 0), (1, 1)]


def test_image_category_and_crowds_are_kept_apart(tmp_path: Path) -> None:
    annotations, detections = load(
        tmp_path,
        [
            {"segmentation": square(10)},
            {"segmentation": square(10), "image_id": 2},
            {"segmentation": square(100), "iscrowd": 1},
        ],
        [
            {"segmentation": square(10), "category_id": 2},
            {"segmentation": square(12), "image_id": 2},
            {"segmentation": square(100)},
        ],
    )
    assert match_by_iou(annotations, detections) == [(1, 1)]


def test_equal_fits_go_to_the_earlier_record(tmp_path: Path) -> None:
    annotations, detections = load(
        tmp_path, [{"segmentation": square(10)}], [{"segmentation": square(10)}] * 2
    )
    assert match_by_iou(annotations, detections) == [(0, 0)]


def test_ids_are_followed_whatever_the_masks_show(tmp_path: Path) -> None:
    annotations, detections = load(
        tmp_path,
        [{"segmentation": square(10)}, {"segmentation": square(100)}],
        [{"segmentation": square(10)}, {"segmentation": square(100)}, {"segmentation": square(50)}],
    )
    assert match_by_ids(annotations, detections, [11, 10, None], "m.json") == [(1, 0), (0, 1)]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([99, None], "annotation id 99 is not in"),
        ([12, None], "annotation id 12 is a crowd region"),
        ([11, None], "annotation id 11 is of image 2, the mask of 1"),
        ([10, 10], "annotation id 10 already belongs to record 0"),
    ],
)
def test_ids_that_cannot_be_are_refused(tmp_path: Path, ids: list[int | None], message: str) -> None:
    annotations, detections = load(
        tmp_path,
        [
            {"segmentation": square(10)},
            {"segmentation": square(10), "image_id": 2},
            {"segmentation": square(100), "iscrowd": 1},
        ],
        [{"segmentation": square(10)}] * 2,
    )
    with pytest.raises(InputError, match=f"m.json: record .*{message}"):
        match_by_ids(annotations, detections, ids, "m.json")


def test_before_and_after_must_be_the_same_detections(tmp_path: Path) -> None:
    _, before = load(
        tmp_path, [], [{"segmentation": square(10)}, {"segmentation": square(20), "image_id": 2}]
    )
    check_same_detections(before, before, ("before.json", "after.json"))
    with pytest.raises(InputError, match=r"after.json: 1 records, but 2 in before.json"):
        check_same_detections(before, before[:1], ("before.json", "after.json"))
    with pytest.raises(
        InputError, match=r"after.json: record 0: image 1, category 1, but image 2, category 1 in before.json"
    ):
        check_same_detections(before[::-1], before, ("before.json", "after.json"))
