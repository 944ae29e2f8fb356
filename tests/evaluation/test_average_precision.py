"""AP against pycocotools, boundary AP against a plain restatement, LVIS's rules one by one."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scenes import HEIGHT, WIDTH, plain_boundary, rle, scenes, write

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.average_precision import AveragePrecision, Overlap, average_precision
from transfiner_refine.evaluation.coco_files import load_annotations, load_results

pytest.importorskip("faster_coco_eval", reason="the eval extra is not installed")

COCO_NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def ours(
    folder: Path,
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    overlap: Overlap = "mask",
    **options: float,
) -> AveragePrecision:
    annotations = load_annotations(write(folder, "truth.json", truth))
    detections = load_results(write(folder, "results.json", results), annotations)
    return average_precision(annotations, detections, [overlap], **options)[overlap]


class PlainBoundaryEval(COCOeval):  # type: ignore[misc]
    """pycocotools with min(mask IoU, boundary IoU) of full-size bitmaps; crowds keep their mask IoU."""

    ratio = 0.02

    def computeIoU(self, image_id: int, category_id: int) -> Any:  # noqa: N802
        ious = super().computeIoU(image_id, category_id)
        if len(ious) == 0:
            return ious
        truths, found = self._gts[image_id, category_id], self._dts[image_id, category_id]
        found = [found[i] for i in np.argsort([-entry["score"] for entry in found], kind="mergesort")][:100]
        outlines = [
            [rle(plain_boundary(codec.decode(entry["segmentation"]), self.ratio)) for entry in entries]
            for entries in (found, truths)
        ]
        boundary = codec.iou(*outlines, [0] * len(truths))
        crowd = np.array([bool(entry["iscrowd"]) for entry in truths])
        return np.where(crowd, ious, np.minimum(ious, boundary))


def reference(
    truth: dict[str, Any], results: list[dict[str, Any]], evaluator: type[COCOeval] = COCOeval
) -> dict[str, float]:
    """pycocotools' twelve numbers."""
    truth, results = copy.deepcopy(truth), copy.deepcopy(results)
    for entry in truth["annotations"]:
        entry["id"] += 1  # pycocotools takes id 0 for "not matched"
    for entry in results:
        entry.pop("bbox", None)
    with contextlib.redirect_stdout(io.StringIO()):
        table = COCO()
        table.dataset = truth
        table.createIndex()
        evaluation = evaluator(table, table.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(COCO_NAMES, (float(value) for value in evaluation.stats), strict=True))


def assert_equal(scores: dict[str, float], expected: dict[str, float]) -> None:
    assert list(scores) == list(expected)
    for name, value in expected.items():
        if value == -1:  # pycocotools' "no truth of this kind"
            assert math.isnan(scores[name]), name
        else:
            assert scores[name] == pytest.approx(value, abs=1e-6), name


def same(one: AveragePrecision, other: AveragePrecision) -> None:
    """Every number alike, nan being nan."""
    np.testing.assert_equal(dataclasses.asdict(one), dataclasses.asdict(other))


@pytest.mark.parametrize("seed", range(4))
def test_mask_ap_is_that_of_pycocotools_with_crowds_empty_images_and_ties(tmp_path: Path, seed: int) -> None:
    truth, results = scenes(seed)
    assert any(entry["iscrowd"] for entry in truth["annotations"])
    assert_equal(ours(tmp_path, truth, results).scores, reference(truth, results))


def test_mask_ap_is_that_of_pycocotools_beyond_100_detections_a_class(tmp_path: Path) -> None:
    truth, results = scenes(7, images=4, detections=500)
    assert_equal(ours(tmp_path, truth, results).scores, reference(truth, results))


@pytest.mark.parametrize("seed", range(3))
def test_boundary_ap_is_that_of_the_plain_definition(tmp_path: Path, seed: int) -> None:
    truth, results = scenes(seed, detections=60, shift=2)
    expected = reference(truth, results, PlainBoundaryEval)
    assert expected["AP"] < reference(truth, results)["AP"]
    assert_equal(ours(tmp_path, truth, results, "boundary").scores, expected)


@pytest.mark.parametrize("seed", range(3))
def test_boundary_ap_is_the_same_where_many_detections_compete_for_overlapping_truths(
    tmp_path: Path, seed: int
) -> None:
    truth, results = scenes(seed, images=4, detections=130, shift=1 + seed)
    for entry in truth["annotations"] + results:
        entry["category_id"] = 1
    assert_equal(
        ours(tmp_path, truth, results, "boundary").scores, reference(truth, results, PlainBoundaryEval)
    )


def test_a_narrower_band_gives_a_lower_boundary_ap(tmp_path: Path) -> None:
    truth, results = scenes(1, shift=2)
    wide = ours(tmp_path, truth, results, "boundary", boundary_ratio=0.05).scores["AP"]
    assert ours(tmp_path, truth, results, "boundary", boundary_ratio=0.005).scores["AP"] < wide


def test_sizes_follow_the_masks_and_not_the_boxes(tmp_path: Path) -> None:
    truth, results = scenes(3)
    boxed = [entry | {"bbox": [0, 0, WIDTH, HEIGHT]} for entry in results]
    same(ours(tmp_path, truth, boxed), ours(tmp_path, truth, results))


def test_no_detections_give_zero(tmp_path: Path) -> None:
    truth, _ = scenes(0)
    scores = ours(tmp_path, truth, [], "boundary").scores
    assert scores["AP"] == scores["AR100"] == 0


def test_no_truth_gives_nan(tmp_path: Path) -> None:
    truth, results = scenes(0)
    assert math.isnan(ours(tmp_path, truth | {"annotations": []}, results).scores["AP"])


def test_the_mean_over_classes_is_ap(tmp_path: Path) -> None:
    truth, results = scenes(2)
    precision = ours(tmp_path, truth, results)
    assert math.isnan(precision.classes[4])  # a class without instances
    mean = np.nanmean(list(precision.classes.values()))
    assert precision.scores["AP"] == pytest.approx(float(mean))


def test_without_the_library_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, results = scenes(0)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(InputError, match=r"pip install 'transfiner-refine\[eval\]'"):
        ours(tmp_path, truth, results)


def lvis(truth: dict[str, Any]) -> dict[str, Any]:
    """The same annotations as LVIS would have them, every category checked in every image."""
    truth = copy.deepcopy(truth)
    truth["annotations"] = [entry | {"iscrowd": 0} for entry in truth["annotations"]]
    for entry, frequency in zip(truth["categories"], "rcff", strict=True):
        entry["frequency"] = frequency
    for image in truth["images"]:
        here = {entry["category_id"] for entry in truth["annotations"] if entry["image_id"] == image["id"]}
        image["neg_category_ids"] = sorted({1, 2, 3, 4} - here)
        image["not_exhaustive_category_ids"] = []
    return truth


def test_lvis_ap_is_cocos_where_every_class_is_checked_in_every_image(tmp_path: Path) -> None:
    truth, results = scenes(4)
    truth = lvis(truth)
    scores, expected = ours(tmp_path, truth, results).scores, reference(truth, results)
    for name in ("AP", "AP50", "AP75", "APs", "APm"):
        assert scores[name] == pytest.approx(expected[name], abs=1e-6)
    assert scores["AR300"] == pytest.approx(expected["AR100"], abs=1e-6)
    by_class = ours(tmp_path, truth, results).classes
    assert scores["APr"] == pytest.approx(by_class[1])
    assert scores["APc"] == pytest.approx(by_class[2])
    assert scores["APf"] == pytest.approx(by_class[3])


def test_lvis_ignores_classes_nobody_looked_for_in_an_image(tmp_path: Path) -> None:
    truth, results = scenes(4)
    checked = lvis(truth)
    unchecked = copy.deepcopy(checked)
    for image in unchecked["images"]:
        image["neg_category_ids"] = []
    present = {(entry["image_id"], entry["category_id"]) for entry in checked["annotations"]}
    kept = [entry for entry in results if (entry["image_id"], entry["category_id"]) in present]
    assert len(kept) < len(results)
    same(ours(tmp_path, unchecked, results), ours(tmp_path, checked, kept))


def test_lvis_does_not_count_extra_finds_of_a_class_not_marked_exhaustively(tmp_path: Path) -> None:
    truth, results = scenes(4)
    exhaustive = lvis(truth)
    loose = copy.deepcopy(exhaustive)
    for image in loose["images"]:
        image["not_exhaustive_category_ids"] = [1, 2, 3]
    assert ours(tmp_path, loose, results).scores["AP"] > ours(tmp_path, exhaustive, results).scores["AP"]


def test_lvis_counts_the_best_300_detections_of_an_image(tmp_path: Path) -> None:
    truth, results = scenes(5, images=3, detections=400)
    for number, entry in enumerate(results):
        entry["score"] = 1 - number / 10_000  # falling within each image
    best = [
        entry
        for image in (1, 2, 3)
        for entry in [entry for entry in results if entry["image_id"] == image][:300]
    ]
    assert len(best) < len(results)
    same(ours(tmp_path, lvis(truth), results), ours(tmp_path, lvis(truth), best))
