"""Simulated errors that follow the image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from transfiner_refine.evaluation.overlap import mask_iou
from transfiner_refine.masks import MaskWindow
from transfiner_refine.training.image_errors import Segments
from transfiner_refine.training.simulate import simulate_coarse


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
        voted = Segments(image, rng).voted(mask, rng)
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
    segments = Segments(pixels, rng)
    for changed in (segments.voted(mask, rng), segments.swapped(mask, rng)):
        assert changed.shape == mask.shape
        assert changed.dtype == np.uint8
        assert set(np.unique(changed)) <= {0, 1}


def test_swapped_regions_lie_at_the_outline_and_change_the_mask() -> None:
    rng = np.random.default_rng(3)
    pixels = np.full((120, 120, 3), 90, np.uint8)  # nothing to follow: regions of one size
    mask = np.zeros((120, 120), np.uint8)
    mask[40:80, 40:80] = 1
    changes = [Segments(pixels, rng).swapped(mask, rng) != mask for _ in range(20)]
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
