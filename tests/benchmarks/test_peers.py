"""benchmarks/peers.py: other refiners, and the guided filter that stands in for OpenCV's."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from transfiner_refine.evaluation.overlap import mask_iou
from transfiner_refine.masks import MaskWindow


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import peers

    assert sys.modules["peers"] is peers
    return peers


def disc(radius: float, shift: float = 0) -> np.ndarray:
    y, x = np.mgrid[:120, :160]
    return (x - 80 - shift) ** 2 + (y - 60) ** 2 < radius**2


@pytest.mark.parametrize("name", ["guided filter", "GrabCut", "DenseCRF", "joint bilateral"])
def test_a_mask_moved_off_a_plain_disc_is_moved_back(peers: ModuleType, name: str) -> None:
    peer = peers.PEERS[name]
    if not peer.is_installed():
        pytest.skip(f"pip install {peer.package}")
    noise = np.random.default_rng(0).normal(0, 4, (120, 160, 3))
    image = (
        (np.where(disc(40)[..., None], (200, 80, 60), (40, 90, 160)) + noise).clip(0, 255).astype(np.uint8)
    )
    coarse = MaskWindow(disc(40, 2), 0, 0, (120, 160))
    after = peer.refine(image, coarse)
    assert after.values.dtype == bool
    assert mask_iou(disc(40), after) > mask_iou(disc(40), coarse)


def test_the_crop_ends_where_the_image_does(peers: ModuleType) -> None:
    mask = MaskWindow(np.ones((20, 40), bool), 2, 98, (120, 160))
    assert peers.crop_box(mask) == (0, 93, 52, 120)


def test_our_guided_filter_is_opencv_s(peers: ModuleType) -> None:
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "ximgproc"):
        pytest.skip("pip install opencv-contrib-python")
    guide = np.random.default_rng(0).random((60, 80, 3), np.float32)
    soft = np.float32(disc(40)[:60, :80])
    theirs = cv2.ximgproc.guidedFilter(guide, soft, 5, peers.GUIDED_EPS)
    assert np.abs(peers._guided(guide, soft, 5) - theirs).max() < 0.02
