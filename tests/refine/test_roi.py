"""RoIs around coarse masks, resampling, pasting back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfiner_refine.masks import MaskWindow
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.refine.roi import paste_into_roi, read_mask, resample, roi_around

CONFIG = RefinerConfig()


@st.composite
def windows(draw: st.DrawFn) -> MaskWindow:
    height, width = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    y0 = draw(st.integers(0, height - 1))
    x0 = draw(st.integers(0, width - 1))
    h, w = draw(st.integers(1, height - y0)), draw(st.integers(1, width - x0))
    return MaskWindow(np.ones((h, w), bool), x0, y0, (height, width))


@settings(max_examples=100, deadline=None)
@given(mask=windows())
def test_the_roi_lies_in_the_image_and_holds_the_mask(mask: MaskWindow) -> None:
    roi = roi_around(mask, CONFIG)
    height, width = mask.image_size
    assert 0 <= roi.x0 < roi.x1 <= width
    assert 0 <= roi.y0 < roi.y1 <= height
    assert np.count_nonzero(read_mask(mask, roi)) == mask.area


def test_a_mask_in_the_middle_gets_its_margin_on_every_side() -> None:
    mask = MaskWindow(np.ones((240, 240), bool), 100, 100, (440, 440))
    roi = roi_around(mask, CONFIG)
    assert (roi.x0, roi.y0, roi.x1, roi.y1) == (70, 70, 370, 370)


def test_a_small_object_is_seen_with_more_of_what_is_around() -> None:
    config = replace(CONFIG, roi_context=0.5)
    mask = MaskWindow(np.ones((80, 80), bool), 100, 100, (400, 400))
    roi = roi_around(mask, config)
    assert (roi.x0, roi.y0, roi.x1, roi.y1) == (80, 80, 200, 200)


@given(side=st.integers(1, 1000), context=st.floats(0, 2))
def test_more_context_never_costs_resolution(side: int, context: float) -> None:
    config = replace(CONFIG, roi_context=context)
    margin = config.margin(side)
    assert config.roi_margin <= margin <= max(config.roi_margin, context)
    if margin > config.roi_margin:
        assert side * (1 + margin) <= config.crop_side + 1e-6


def test_a_thin_mask_gets_a_roi_of_limited_aspect() -> None:
    roi = roi_around(MaskWindow(np.ones((200, 4), bool), 200, 100, (400, 400)), CONFIG)
    assert roi.height / roi.width <= CONFIG.roi_max_aspect + 0.05


@pytest.mark.parametrize(("h", "w"), [(448, 448), (30, 900), (900, 30), (1, 1), (5, 7)])
def test_resampling_keeps_constants_and_range(h: int, w: int) -> None:
    ones = np.full((h, w), 0.75, np.float32)
    np.testing.assert_allclose(resample(ones, 448, 448), 0.75, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(mask=windows(), grid=st.sampled_from([28, 112, 448]))
def test_where_nothing_was_refined_the_coarse_mask_comes_back_exactly(mask: MaskWindow, grid: int) -> None:
    roi = roi_around(mask, CONFIG)
    noise = np.random.default_rng(0).random((grid, grid), dtype=np.float32)
    pasted = paste_into_roi(noise, np.zeros((grid, grid), bool), mask, roi)
    assert np.array_equal(pasted, read_mask(mask, roi))


def test_a_refined_map_at_the_rois_own_resolution_is_pasted_pixel_by_pixel() -> None:
    mask = MaskWindow(np.ones((90, 90), bool), 5, 5, (200, 200))
    roi = roi_around(mask, RefinerConfig(roi_margin=0.2, roi_min_margin=0))
    grid = np.random.default_rng(0).random((roi.height, roi.width), dtype=np.float32)
    pasted = paste_into_roi(grid, np.ones(grid.shape, bool), mask, roi)
    np.testing.assert_allclose(pasted, grid)


@pytest.mark.parametrize(("side", "depth"), [(20, 3), (168, 3), (169, 4), (336, 4), (337, 5), (5000, 5)])
def test_large_rois_get_deeper_trees(side: int, depth: int) -> None:
    assert CONFIG.depth(side) == depth
