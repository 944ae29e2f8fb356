"""Simulated coarse masks."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from transfiner_refine.evaluation.overlap import mask_iou
from transfiner_refine.masks import MaskWindow
from transfiner_refine.training.simulate import ERRORS, _Regions, simulate_coarse


def star(height: int, width: int, x: int, y: int, image: tuple[int, int]) -> MaskWindow:
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    reach = np.where(np.arange(10) % 2, 0.25, 0.5)
    points = np.stack(
        (np.cos(angles) * reach * width + width / 2, np.sin(angles) * reach * height + height / 2), 1
    )
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    return MaskWindow(mask.astype(bool), x, y, image)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(3, 120),
    width=st.integers(3, 120),
    x=st.integers(0, 40),
    y=st.integers(0, 40),
)
def test_a_coarse_mask_is_recognisably_the_same_object_inside_the_image(
    seed: int, height: int, width: int, x: int, y: int
) -> None:
    truth = star(height, width, x, y, (160, 160))
    if truth.area == 0:
        return
    coarse = simulate_coarse(truth, np.random.default_rng(seed))
    assert coarse.values.dtype == bool
    assert coarse.area > 0
    h, w = coarse.values.shape
    assert coarse.x >= 0
    assert coarse.y >= 0
    assert coarse.x + w <= 160
    assert coarse.y + h <= 160
    # the least IoU holds on the canvas; what falls outside the image can lower it a little
    assert mask_iou(coarse, truth) > 0.3


def test_the_same_seed_gives_the_same_mask_and_another_seed_another() -> None:
    truth = star(100, 80, 20, 10, (160, 160))
    masks = [simulate_coarse(truth, np.random.default_rng(seed)).paste() for seed in (1, 1, 2)]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


def test_the_order_of_a_mask_in_memory_does_not_matter() -> None:
    truth = star(100, 80, 20, 10, (160, 160))
    by_columns = MaskWindow(np.asfortranarray(truth.values), truth.x, truth.y, truth.image_size)
    for seed in range(30):
        masks = [simulate_coarse(mask, np.random.default_rng(seed)).paste() for mask in (truth, by_columns)]
        assert np.array_equal(*masks)


def test_most_masks_are_wrong_and_some_are_right() -> None:
    truth = star(100, 80, 20, 10, (160, 160))
    rng = np.random.default_rng(0)
    overlaps = np.array([mask_iou(simulate_coarse(truth, rng), truth) for _ in range(300)])
    assert 0.08 < np.mean(overlaps == 1) < 0.25
    assert 0.6 < np.mean(overlaps) < 0.92


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 9)])
def test_specks_survive(size: tuple[int, int]) -> None:
    truth = MaskWindow(np.ones(size, bool), 3, 4, (20, 20))
    for seed in range(50):
        assert simulate_coarse(truth, np.random.default_rng(seed)).area > 0


def halves(height: int, width: int) -> NDArray[np.uint8]:
    """A dark left and a bright right half."""
    image = np.full((height, width, 3), 30, np.uint8)
    image[:, width // 2 :] = 220
    return image


def test_a_voted_mask_has_its_outline_on_the_images_edge() -> None:
    image = halves(144, 144)
    mask = np.zeros((144, 144), np.uint8)
    mask[:, 66:] = 1  # the object is the bright half; its mask is 6 pixels too wide
    rng = np.random.default_rng(0)
    distances = []
    for _ in range(20):
        voted = _Regions(image, rng).voted(mask, rng)
        distances.append(np.median(voted.argmax(1)) - 72)
    assert np.median(np.abs(distances)) <= 2


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(12, 200),
    width=st.integers(12, 200),
)
def test_regions_cover_pictures_of_any_shape(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : -(height // 4), width // 4 : -(width // 4)] = 1
    regions = _Regions(pixels, rng)
    for changed in (regions.voted(mask, rng), regions.swapped(mask, rng)):
        assert changed.shape == mask.shape
        assert changed.dtype == np.uint8
        assert set(np.unique(changed)) <= {0, 1}


def test_swapped_regions_lie_at_the_outline_and_change_the_mask() -> None:
    rng = np.random.default_rng(3)
    pixels = np.full((120, 120, 3), 90, np.uint8)  # nothing to follow: regions of one size
    mask = np.zeros((120, 120), np.uint8)
    mask[40:80, 40:80] = 1
    changes = [_Regions(pixels, rng).swapped(mask, rng) != mask for _ in range(20)]
    assert sum(change.any() for change in changes) >= 15
    assert not np.any([change[0] | change[-1] for change in changes])  # far from it nothing happens


@pytest.mark.parametrize("x", [0, 15])  # at the image's rim, and inside
def test_a_coarse_mask_may_follow_the_image(x: int) -> None:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (90, 110, 3), dtype=np.uint8)
    truth = MaskWindow(np.ones((60, 50), bool), x, 20, (90, 110))
    for seed in range(20):
        plain = simulate_coarse(truth, np.random.default_rng(seed))
        following = [simulate_coarse(truth, np.random.default_rng(seed), image) for _ in range(2)]
        assert np.array_equal(following[0].paste(), following[1].paste())
        assert mask_iou(following[0], truth) > 0.3
        assert plain.image_size == following[0].image_size == (90, 110)


@pytest.mark.parametrize("error", ["clicks", "wrong_box"])
def test_errors_outside_the_recipe_change_a_mask_a_little(error: str) -> None:
    assert ERRORS[error] == 0
    truth = star(100, 80, 20, 10, (160, 160))
    overlaps = []
    for seed in range(100):
        coarse = simulate_coarse(truth, np.random.default_rng(seed), errors={error: 1.0})
        overlaps.append(mask_iou(coarse, truth))
    assert 0.05 < np.mean(np.array(overlaps) == 1) < 0.25  # a tenth is right
    assert 0.6 < np.mean(overlaps) < 0.96


def test_a_clicked_polygon_has_few_corners_and_no_holes() -> None:
    ring = np.zeros((120, 120), bool)
    ring[10:110, 10:110] = True
    ring[40:80, 40:80] = False
    truth = MaskWindow(ring, 20, 20, (160, 160))
    filled = 0
    for seed in range(40):
        coarse = simulate_coarse(truth, np.random.default_rng(seed), errors={"clicks": 1.0}).paste()
        if not coarse[80, 80]:
            continue
        filled += 1
        contours, _ = cv2.findContours(coarse.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        assert len(cv2.approxPolyDP(contours[0], 1.5, True)) <= 30
    assert filled >= 25
