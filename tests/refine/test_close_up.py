"""Close-ups: windows that cover an RoI, and how their labels are blended."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from transfiner_refine.refine.close_up import blend_close_ups, close_up_windows
from transfiner_refine.refine.roi import Roi

ROIS = st.builds(
    lambda x0, y0, width, height: Roi(x0, y0, x0 + width, y0 + height),
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(1, 300),
    st.integers(1, 300),
)


@given(ROIS)
def test_windows_lie_inside_the_roi_and_cover_it(roi: Roi) -> None:
    covered = np.zeros((roi.height, roi.width), int)
    windows = close_up_windows(roi)
    for window in windows:
        assert roi.x0 <= window.x0 < window.x1 <= roi.x1
        assert roi.y0 <= window.y0 < window.y1 <= roi.y1
        covered[window.y0 - roi.y0 : window.y1 - roi.y0, window.x0 - roi.x0 : window.x1 - roi.x0] += 1
    assert covered.min() >= 1
    assert len(windows) in (2, 4)


@given(ROIS, st.floats(0, 1), st.data())
def test_where_all_agree_blending_changes_nothing(roi: Roi, value: float, data: st.DataObject) -> None:
    windows = close_up_windows(roi)
    before = np.full((roi.height, roi.width), value, np.float32)
    labels = [
        np.full((window.height, window.width), value, np.float32) if data.draw(st.booleans()) else None
        for window in windows
    ]
    np.testing.assert_allclose(blend_close_ups(roi, before, windows, labels), before, atol=1e-6)


def test_a_window_rules_where_it_is_alone_and_fades_towards_the_next() -> None:
    roi = Roi(10, 20, 110, 60)
    windows = close_up_windows(roi)
    assert windows == [Roi(10, 20, 70, 60), Roi(50, 20, 110, 60)]
    before = np.zeros((40, 100), np.float32)
    blended = blend_close_ups(roi, before, windows, [np.ones((40, 60), np.float32), None])
    assert (blended[:, :40] == 1).all()
    assert (blended[:, 60:] == 0).all()
    assert (np.diff(blended[:, 39:61], axis=1) < 0).all()
    assert np.abs(np.diff(blended, axis=1)).max() <= 0.06  # no step where the windows meet
