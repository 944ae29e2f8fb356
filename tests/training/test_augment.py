"""Photos made of two: what is pasted is where the mask says, and the rest is left alone."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from transfiner_refine.masks import MaskWindow
from transfiner_refine.training.augment import change_backdrop, occlude, paste_object, shorten


def test_a_pasted_object_keeps_its_pixels_and_gets_a_mask_where_it_lies() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    image[10:50, 20:40] = 200
    truth = MaskWindow(np.ones((40, 20), bool), 20, 10, (60, 60))
    host = np.full((90, 120, 3), 50, np.uint8)
    pasted, mask = paste_object(image, truth, host, np.random.default_rng(0))
    assert pasted.shape == host.shape
    inner = mask.paste()
    assert inner.shape == (90, 120)
    assert pasted[inner].mean() > 180
    assert pasted[~inner].mean() < 60


def test_another_backdrop_leaves_the_object_alone() -> None:
    image = np.full((60, 80, 3), 100, np.uint8)
    image[5:50, 60:80] = 200  # touches the image's rim
    truth = MaskWindow(np.ones((45, 20), bool), 60, 5, (60, 80))
    host = np.full((33, 21, 3), 10, np.uint8)
    changed = change_backdrop(image, truth, host, np.random.default_rng(0))
    assert changed.shape == image.shape
    assert (changed[10:45, 65:] == 200).all()
    assert (changed[:, :50] == 10).all()
    assert (image[:, :60] == 100).all()  # the photo itself is as before


@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 60), height=st.integers(1, 60))
def test_what_hides_an_object_is_no_longer_part_of_its_mask(seed: int, width: int, height: int) -> None:
    image = np.zeros((90, 100, 3), np.uint8)
    truth = MaskWindow(np.ones((40, 30), bool), 70, 20, (90, 100))  # touches the image's rim
    other_image = np.full((64, 64, 3), 255, np.uint8)
    other = MaskWindow(np.ones((height, width), bool), 2, 3, (64, 64))
    changed, mask = occlude(image, truth, other_image, other, np.random.default_rng(seed))
    assert (image == 0).all()  # the photo itself is as before
    assert 0.6 * truth.area <= mask.area <= truth.area
    seen, before = mask.paste(), truth.paste()
    assert not (seen & ~before).any()
    if mask.area < truth.area:
        assert changed[before & ~seen].mean() > 100  # the other object is there
        assert changed[seen].mean() < 100
    else:
        assert changed[before].mean() < 20


def test_an_object_that_would_be_hidden_is_left_as_it_is() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    truth = MaskWindow(np.ones((20, 20), bool), 20, 20, (60, 60))
    other_image, other = (
        np.full((20, 20, 3), 255, np.uint8),
        MaskWindow(np.ones((20, 20), bool), 0, 0, (20, 20)),
    )
    made = [occlude(image, truth, other_image, other, np.random.default_rng(seed)) for seed in range(100)]
    left = [changed for changed, mask in made if mask is truth]
    assert 0 < len(left) < 100
    assert not any(changed.any() for changed in left)
    assert all(0.6 * truth.area <= mask.area < truth.area for _, mask in made if mask is not truth)


@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 60), height=st.integers(1, 60))
def test_a_shortened_object_keeps_most_of_its_mask_on_one_side(seed: int, width: int, height: int) -> None:
    truth = MaskWindow(np.ones((height, width), bool), 30, 20, (90, 100))
    part = shorten(truth, np.random.default_rng(seed))
    assert not (part.paste() & ~truth.paste()).any()
    assert 0.6 * truth.area <= part.area <= truth.area
    if min(width, height) > 20:
        assert part.area < truth.area
        # what was taken off lies together: one end of the object, not bits of it here and there
        lost = (truth.paste() & ~part.paste()).astype(np.uint8)
        assert cv2.connectedComponents(lost)[0] - 1 <= 2
