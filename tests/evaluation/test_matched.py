"""Matched-instance scores: who counts, what changed, how sure the mean is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation import boundary_iou, mask_iou, matched_scores, mean_boundary_accuracy
from transfiner_refine.evaluation.matched import bootstrap_mean


def square(side: int, *, left: int = 20) -> NDArray[np.bool_]:
    """A square of so many pixels a side, cut off on the left: [200, 200]."""
    mask = np.zeros((200, 200), bool)
    mask[20 : 20 + side, left : 20 + side] = True
    return mask


def test_rows_hold_the_scores_of_each_mask_in_the_order_they_came() -> None:
    truth = [square(60), square(100)]
    coarse = [square(60, left=30), square(100, left=50)]
    scores = matched_scores(truth, coarse, truth)
    for row, true_mask, mask in zip(scores.rows, truth, coarse, strict=True):
        assert row.area == true_mask.sum()
        assert row.before.iou == mask_iou(true_mask, mask)
        assert row.before.boundary_iou == boundary_iou(true_mask, mask)
        assert row.before.mba == mean_boundary_accuracy(true_mask, mask)
        assert row.after is not None
        assert (row.after.iou, row.after.boundary_iou, row.after.mba) == (1, 1, 1)
    assert [row.image for row in scores.rows] == [0, 1]


def test_small_instances_and_hopeless_coarse_masks_are_listed_but_not_counted() -> None:
    truth = [square(31), square(32), square(100)]
    coarse = [square(31), square(32), square(100, left=80)]
    scores = matched_scores(truth, coarse)
    assert [row.counted for row in scores.rows] == [False, True, False]
    assert scores.summary["all"].count == 1
    assert matched_scores(truth, coarse, min_area=0, min_coarse_iou=0).summary["all"].count == 3


def test_size_classes_are_cocos_by_true_area() -> None:
    truth = [square(31), square(32), square(95), square(96)]
    summary = matched_scores(truth, truth, truth, min_area=0).summary
    assert {size: entry.count for size, entry in summary.items()} == {
        "all": 4,
        "small": 1,
        "medium": 2,
        "large": 1,
    }


def test_half_a_point_of_iou_is_the_border_between_unchanged_and_changed() -> None:
    truth = [square(100)] * 4
    before = [square(100, left=30)] * 4  # IoU 0.9
    after = [square(100, left=30), square(100), square(100, left=40), square(100, left=30)]
    after[3] = after[3].copy()
    after[3][20:60, 30] = False  # 40 of 10,000 pixels: 0.4 points
    overall = matched_scores(truth, before, after).summary["all"]
    assert (overall.better, overall.worse, overall.unchanged) == (0.25, 0.25, 0.5)
    assert overall.iou_change is not None
    assert overall.iou_change.mean == pytest.approx((0 + 0.1 - 0.1 - 0.004) / 4)


def test_without_refined_masks_the_coarse_ones_are_scored_alone() -> None:
    overall = matched_scores([square(80)], [square(80)]).summary["all"]
    assert overall.before.iou == 1
    assert overall.after is None
    assert overall.better is None


def test_nothing_to_count_gives_nan_not_an_error() -> None:
    overall = matched_scores([], [], []).summary["all"]
    assert overall.count == 0
    assert math.isnan(overall.before.iou)
    assert overall.iou_change is not None
    assert math.isnan(overall.iou_change.mean)


def test_sequences_of_different_length_are_refused() -> None:
    with pytest.raises(InputError, match="one list ends at 1"):
        matched_scores([square(40)] * 2, [square(40)])


def test_generators_are_read_once() -> None:
    masks = [square(40), square(50)]
    scores = matched_scores(iter(masks), iter(masks), iter(masks), images=iter("ab"))
    assert [row.image for row in scores.rows] == ["a", "b"]


def test_the_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        interval = bootstrap_mean(generator.normal(1.0, 2.0, 80), list(range(80)), seed=seed)
        covered += interval.low <= 1.0 <= interval.high
    assert 88 <= covered <= 100


def test_the_bootstrap_draws_images_so_copies_within_one_add_no_certainty() -> None:
    values = np.random.default_rng(1).normal(size=30)
    alone = bootstrap_mean(values, list(range(30)))
    copied = bootstrap_mean(np.repeat(values, 10), list(np.repeat(np.arange(30), 10)))
    assert copied.mean == pytest.approx(alone.mean)
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(2).normal(size=20)
    images = list(range(20))
    assert bootstrap_mean(values, images, seed=3) == bootstrap_mean(values, images, seed=3)
    assert bootstrap_mean(values, images, seed=3) != bootstrap_mean(values, images, seed=4)


def test_one_image_has_no_interval() -> None:
    interval = bootstrap_mean(np.array([1.0, 2.0]), ["one", "one"])
    assert interval.mean == 1.5
    assert math.isnan(interval.low)
