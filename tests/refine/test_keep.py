"""When the given mask is kept, and where it is not kept although its outline is."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given as with_any
from hypothesis import strategies as st
from numpy.typing import NDArray

from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.refine.keep import patches_if_agreed

CONFIG = RefinerConfig()
Mask = NDArray[np.bool_]


def disc(radius: int = 100, x: int = 200, y: int = 200) -> Mask:
    canvas = np.zeros((400, 400), np.uint8)
    cv2.circle(canvas, (x, y), radius, 1, -1)
    return canvas > 0


@pytest.mark.parametrize("other", [disc(100), disc(101), disc(99), disc(100, 201)])
def test_an_outline_that_moved_by_a_pixel_is_kept_as_it_was(other: Mask) -> None:
    patches = patches_if_agreed(disc(), other, CONFIG)
    assert patches is not None
    assert not patches.any()


@pytest.mark.parametrize("other", [disc(104), disc(96), disc(100, 206), disc() & (np.arange(400) < 200)])
def test_an_outline_that_moved_is_not_kept(other: Mask) -> None:
    assert patches_if_agreed(disc(), other, CONFIG) is None


@pytest.mark.parametrize(("x", "y", "value"), [(350, 60, True), (200, 200, False), (300, 200, True)])
@with_any(radius=st.integers(12, 30))
def test_an_island_a_hole_or_a_bump_is_mended_and_the_outline_elsewhere_kept(
    x: int, y: int, value: bool, radius: int
) -> None:
    spoilt = np.where(disc(radius, x, y), value, disc())
    refined = np.where(np.arange(400) < 150, disc(101), disc())  # right but for a pixel on the left
    patches = patches_if_agreed(spoilt, refined, CONFIG)
    assert patches is not None
    mended = np.where(patches, refined, spoilt)
    wrong = (mended != disc()) & ~cv2.dilate(disc(101).view(np.uint8), np.ones((5, 5))).astype(bool)
    assert not wrong.any()  # nothing is left of an island
    assert not (disc(90) & ~mended).any()  # nor of a hole
    far = ~disc(3 * radius + 20, x, y)
    assert np.array_equal(mended[far], disc()[far])


@with_any(seed=st.integers(0, 2**32 - 1), share=st.floats(0.03, 0.2))
def test_a_mask_full_of_specks_is_not_kept_for_the_length_of_its_outline(seed: int, share: float) -> None:
    specks = np.random.default_rng(seed).random((400, 400)) < share
    assert patches_if_agreed(disc() ^ (specks & disc(120)), disc(), CONFIG) is None


@with_any(seed=st.integers(0, 2**32 - 1))
def test_patches_lie_where_the_masks_differ(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = [cv2.resize(rng.random((6, 5), np.float32), (90, 120)) > 0.5 for _ in range(2)]
    given, refined = noise[0], np.where(rng.random() < 0.5, noise[0] | noise[1], noise[1])
    given[60, 40] = True
    patches = patches_if_agreed(given, refined, CONFIG)
    assert patches is None or not (patches & (given == refined)).any()
