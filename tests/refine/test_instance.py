"""One instance through the passes: when the given mask is kept, and tiles that cover an RoI and are blended."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given as with_any
from hypothesis import strategies as st
from numpy.typing import NDArray

from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.refine.instance import blend_tiles, patches_if_agreed, tile_rois
from transfiner_refine.refine.roi import Roi

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


ROIS = st.builds(
    lambda x0, y0, width, height: Roi(x0, y0, x0 + width, y0 + height),
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(1, 300),
    st.integers(1, 300),
)


@with_any(ROIS)
def test_windows_lie_inside_the_roi_and_cover_it(roi: Roi) -> None:
    covered = np.zeros((roi.height, roi.width), int)
    windows = tile_rois(roi)
    for window in windows:
        assert roi.x0 <= window.x0 < window.x1 <= roi.x1
        assert roi.y0 <= window.y0 < window.y1 <= roi.y1
        covered[window.y0 - roi.y0 : window.y1 - roi.y0, window.x0 - roi.x0 : window.x1 - roi.x0] += 1
    assert covered.min() >= 1
    assert len(windows) in (2, 4)


@with_any(ROIS, st.floats(0, 1), st.data())
def test_where_all_agree_blending_changes_nothing(roi: Roi, value: float, data: st.DataObject) -> None:
    windows = tile_rois(roi)
    before = np.full((roi.height, roi.width), value, np.float32)
    labels = [
        np.full((window.height, window.width), value, np.float32) if data.draw(st.booleans()) else None
        for window in windows
    ]
    np.testing.assert_allclose(blend_tiles(roi, before, windows, labels), before, atol=1e-6)


def test_a_window_rules_where_it_is_alone_and_fades_towards_the_next() -> None:
    roi = Roi(10, 20, 110, 60)
    windows = tile_rois(roi)
    assert windows == [Roi(10, 20, 70, 60), Roi(50, 20, 110, 60)]
    before = np.zeros((40, 100), np.float32)
    blended = blend_tiles(roi, before, windows, [np.ones((40, 60), np.float32), None])
    assert (blended[:, :40] == 1).all()
    assert (blended[:, 60:] == 0).all()
    assert (np.diff(blended[:, 39:61], axis=1) < 0).all()
    assert np.abs(np.diff(blended, axis=1)).max() <= 0.06  # no step where the windows meet
