"""Checking and measuring many compressed masks at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import rle

from transfiner_refine.evaluation.bulk_rle import measure
from transfiner_refine.types import InputError


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_areas_are_the_pixels_of_the_masks(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    masks = [
        (generator.random(generator.integers(1, 60, 2)) < generator.choice([0, 0.02, 0.5, 0.98, 1])).astype(
            np.uint8
        )
        for _ in range(count)
    ]
    assert measure([rle(mask) for mask in masks]).areas.tolist() == [int(mask.sum()) for mask in masks]


def test_more_masks_than_one_batch_keep_their_order() -> None:
    masks = [rle(np.arange(20).reshape(4, 5) < number % 21) for number in range(5000)]
    assert measure(masks).areas.tolist() == [number % 21 for number in range(5000)]


def test_no_masks_have_no_areas() -> None:
    assert measure([]).areas.tolist() == []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("", "not a COCO run-length string"),
        ("5ä3", "not a COCO run-length string"),
        ("5 3", "not a COCO run-length string"),
        ("5P", "middle of a number"),
        ("PPPPPPPPPPPP0", "longer than any image"),
        ("53", "do not add up"),
        ("O?", "do not add up"),
    ],
)
def test_a_damaged_mask_is_named_by_its_position(damage: str, reason: str) -> None:
    sound: dict[str, Any] = rle(np.eye(6, dtype=np.uint8))
    masks = [sound] * 4500 + [{"size": [6, 6], "counts": damage}] + [sound]
    with pytest.raises(InputError, match=reason) as caught:
        measure(masks)
    assert caught.value.record == "4500"


def test_sizes_that_no_image_has_are_refused_whatever_the_runs() -> None:
    for size in ([-3, -3], [0, 5], [10**10, 10**10]):
        with pytest.raises(InputError, match=r"(not that of an image|do not add up)"):
            measure([{"size": size, "counts": "9"}])


def test_runs_longer_than_the_image_are_refused_though_their_sum_may_come_round() -> None:
    with pytest.raises(InputError, match="do not add up"):
        measure([{"size": [3, 3], "counts": "0ooooo?ooooo?" + "ooooo?0" * 50_000}])


def test_lone_surrogates_are_foreign_characters() -> None:
    with pytest.raises(InputError, match="not a COCO run-length string"):
        measure([{"size": [3, 3], "counts": "9\ud800"}])


def test_masks_with_empty_runs_are_told_from_the_others() -> None:
    counts = ["9", "09", "36", "306", "90", "450"]  # the last three have runs of no pixels
    masks: list[dict[str, Any]] = [{"size": [3, 3], "counts": each} for each in counts]
    assert measure(masks).has_empty_runs.tolist() == [False, False, False, True, True, True]
