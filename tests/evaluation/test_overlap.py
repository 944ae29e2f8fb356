"""The pair measures against plain restatements of their definitions at full image size."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as codec
from scenes import blob, plain_boundary, rle

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation import boundary_iou, mask_iou, mean_boundary_accuracy
from transfiner_refine.evaluation.overlap import boundary_width
from transfiner_refine.masks import MaskWindow


def plain_iou(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def plain_accuracy(truth: NDArray[np.uint8], mask: NDArray[np.uint8]) -> float:
    """CascadePSP: the share of right pixels in five gradients of the truth, averaged."""
    height, width = truth.shape
    shares = []
    for step in range(5):
        radius = 1 + int(((width + height) / 300 - 1) / 5 * step)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        band = (cv2.dilate(truth, disc) - cv2.erode(truth, disc)).astype(bool)
        shares.append((truth == mask)[band].mean() if band.any() else math.nan)
    return float(np.mean(shares))


def pair(seed: int, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    generator = np.random.default_rng(seed)
    kind = seed % 4
    if kind == 0:  # noise: every pixel is an outline
        return tuple((generator.random(size) < generator.random(2)[:, None, None]).astype(np.uint8))
    if kind == 1:  # one covers the image
        return np.ones(size, np.uint8), blob(generator, size)
    return blob(generator, size), blob(generator, size)


sizes = st.tuples(st.integers(6, 90), st.integers(6, 140))


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), size=sizes, ratio=st.sampled_from([0.005, 0.02, 0.1]))
def test_boundary_iou_is_the_definition_to_the_bit(seed: int, size: tuple[int, int], ratio: float) -> None:
    a, b = pair(seed, size)
    expected = plain_iou(plain_boundary(a, ratio), plain_boundary(b, ratio))
    assert boundary_iou(a, b, dilation_ratio=ratio) == expected


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.tuples(st.integers(6, 500), st.integers(6, 900)))
def test_boundary_accuracy_is_the_definition(seed: int, size: tuple[int, int]) -> None:
    truth, mask = pair(seed, size)
    expected = plain_accuracy(truth, mask)
    assert mean_boundary_accuracy(truth, mask) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), size=sizes)
def test_mask_iou_is_that_of_pycocotools(seed: int, size: tuple[int, int]) -> None:
    a, b = pair(seed, size)
    if a.any() or b.any():
        assert mask_iou(a, b) == pytest.approx(float(codec.iou([rle(a)], [rle(b)], [0])[0, 0]), abs=1e-12)


@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_window_scores_like_the_full_mask_it_stands_for(seed: int) -> None:
    a, b = pair(seed * 4 + 2, (60, 80))
    window = MaskWindow(b[10:50, 20:70].astype(bool), 20, 10, (60, 80))
    full = window.paste()
    for measure in (mask_iou, boundary_iou, mean_boundary_accuracy):
        np.testing.assert_equal(measure(a, window), measure(a, full))


def test_the_images_border_is_an_outline_for_boundary_iou() -> None:
    whole = np.ones((50, 50), bool)
    inner = np.zeros((50, 50), bool)
    inner[1:-1, 1:-1] = True
    assert boundary_iou(whole, inner) < 0.1  # bands of one pixel that touch nowhere


def test_equal_masks_score_one_and_disjoint_ones_nothing() -> None:
    mask = blob(np.random.default_rng(5))
    assert mask_iou(mask, mask) == boundary_iou(mask, mask) == mean_boundary_accuracy(mask, mask) == 1
    left, right = np.zeros((20, 40), bool), np.zeros((20, 40), bool)
    left[:, :10], right[:, 30:] = True, True
    assert mask_iou(left, right) == boundary_iou(left, right) == 0


def test_two_empty_masks_are_equal_and_an_empty_truth_has_no_outline() -> None:
    empty = np.zeros((10, 10), bool)
    assert mask_iou(empty, empty) == boundary_iou(empty, empty) == 1
    assert math.isnan(mean_boundary_accuracy(empty, np.ones((10, 10), bool)))


def test_soft_masks_are_cut_at_one_half() -> None:
    soft = np.array([[0.5, 0.49], [1.0, 0.0]], np.float32)
    assert mask_iou(soft, np.array([[1, 0], [1, 0]], bool)) == 1


def test_masks_of_different_images_are_refused() -> None:
    with pytest.raises(InputError, match="different image sizes"):
        mask_iou(np.ones((4, 5), bool), np.ones((5, 4), bool))


@pytest.mark.parametrize(
    ("size", "ratio", "width"),
    [((480, 640), 0.02, 16), ((1024, 2048), 0.005, 11), ((10, 10), 0.02, 1), ((75, 100), 0.02, 2)],
)
def test_the_band_is_a_share_of_the_diagonal_rounded_half_to_even(
    size: tuple[int, int], ratio: float, width: int
) -> None:
    assert boundary_width(size, ratio) == width
