"""Polygons: pixel centres decide, outlines along pixel edges are exact, and OpenCV's contours are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from transfiner_refine.errors import InputError
from transfiner_refine.formats.polygons import (
    coco_polygons,
    fill_contour,
    fill_polygons,
    is_pixel_contour,
    joined,
    outlines,
    polygons_of,
)
from transfiner_refine.formats.segmentation import mask_from_segmentation
from transfiner_refine.masks import Mask, MaskWindow


def joined_outline(mask: MaskWindow, tolerance: float = 0) -> np.ndarray:
    return joined([ring for part in polygons_of(mask, tolerance) for ring in part])


EXAMPLES = settings(max_examples=150, deadline=None)
MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def window(mask: np.ndarray, x: int = 0, y: int = 0) -> MaskWindow:
    return MaskWindow(mask, x, y, (mask.shape[0] + 2 * y, mask.shape[1] + 2 * x))


@EXAMPLES
@given(MASKS, st.integers(0, 3), st.integers(0, 3))
def test_one_polygon_holds_any_mask_to_the_pixel(mask: np.ndarray, x: int, y: int) -> None:
    placed = window(mask, x, y)
    points = joined_outline(placed)
    assert np.array_equal(fill_polygons([points], placed.image_size).paste(), placed.paste())
    assert not is_pixel_contour(points.astype(float))


@EXAMPLES
@given(MASKS, st.sampled_from([97, 640, 1333, 8191]))
def test_shares_of_the_size_in_text_are_exact_too(mask: np.ndarray, side: int) -> None:
    placed = MaskWindow(mask, side - mask.shape[1], side - mask.shape[0], (side, side))
    text = [f"{share:.6f}" for share in (joined_outline(placed) / side).ravel()]
    points = np.array(text, float).reshape(-1, 2) * side
    assert np.array_equal(fill_polygons([points], (side, side)).paste(), placed.paste())


@EXAMPLES
@given(MASKS)
def test_a_reader_that_paints_the_outline_too_adds_no_more_than_bridges_and_touching_corners(
    mask: np.ndarray,
) -> None:
    placed = window(mask)
    painted = np.zeros(mask.shape, np.uint8)
    points = joined_outline(placed).astype(np.int32)
    if len(points):
        cv2.fillPoly(painted, [points], 1)
    assert not (mask & ~painted.astype(bool)).any()
    loops = outlines(placed)
    touching = (
        (mask[:-1, :-1] == mask[1:, 1:]) & (mask[1:, :-1] == mask[:-1, 1:]) & (mask[1:, 1:] != mask[1:, :-1])
    )
    # with more holes a bridge may run over another one, which such a reader then loses
    if sum(not loop.is_hole for loop in loops) == 1 and len(loops) <= 2 and not touching.any():
        assert np.array_equal(painted.astype(bool), mask)


@EXAMPLES
@given(MASKS)
def test_parts_and_holes_are_those_that_opencv_counts(mask: np.ndarray) -> None:
    loops = outlines(window(mask))
    _, levels = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    holes = 0 if levels is None else int((levels[0][:, 3] >= 0).sum())
    parts = 0 if levels is None else len(levels[0]) - holes
    assert (sum(not loop.is_hole for loop in loops), sum(loop.is_hole for loop in loops)) == (parts, holes)
    assert np.array_equal(fill_polygons([loop.points for loop in loops], mask.shape).paste(), mask)


@EXAMPLES
@given(MASKS, st.sampled_from([cv2.CHAIN_APPROX_NONE, cv2.CHAIN_APPROX_SIMPLE]))
def test_a_contour_of_opencv_is_read_to_the_pixel(mask: np.ndarray, method: int) -> None:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, method)
    for contour in contours:
        expected = np.zeros(mask.shape, np.uint8)
        cv2.fillPoly(expected, [contour], 1)
        points = contour.reshape(-1, 2).astype(float)
        assert np.array_equal(fill_contour(points, mask.shape).paste(), expected.astype(bool))


def test_a_round_contour_is_known_and_what_people_draw_is_not() -> None:
    disc = np.hypot(*(np.indices((60, 60)) - 29.6)) < 20
    contours, _ = cv2.findContours(disc.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = contours[0].reshape(-1, 2).astype(float)
    assert is_pixel_contour(points)
    assert not is_pixel_contour(points * 1.37)
    assert not is_pixel_contour(np.array([[3, 4], [20, 9], [11, 30], [5, 21]], float))


def test_bridges_between_joined_contours_draw_nothing() -> None:
    mask = np.zeros((30, 40), bool)
    mask[3:9, 3:9], mask[20:26, 30:37] = True, True
    mask[3, 3] = mask[20, 30] = False
    first, second = (
        contour.reshape(-1, 2)
        for contour in cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    )
    joined = np.concatenate((first, first[:1], second, second[:1])).astype(float)
    assert is_pixel_contour(joined)
    assert np.array_equal(fill_contour(joined, mask.shape).paste(), mask)


def test_the_pixel_centre_decides() -> None:
    triangle = np.array([[0, 0], [4, 0], [0, 4]], float)
    expected = np.add.outer(np.arange(4), np.arange(4)) + 1 < 4
    assert np.array_equal(fill_polygons([triangle], (4, 4)).paste(), expected)
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], float)
    both = fill_polygons([triangle, square], (4, 4)).paste()
    assert np.array_equal(both, ~expected)  # even-odd: what is inside of two is outside


def test_what_lies_beyond_the_image_is_cut_off() -> None:
    box = np.array([[-3, -3], [9, -3], [9, 2], [-3, 2]], float)
    assert np.array_equal(fill_polygons([box], (5, 6)).paste(), np.indices((5, 6))[0] < 2)
    assert fill_polygons([np.array([[-5, -5], [-1, -5], [-1, 4]], float)], (5, 6)).area == 0


@pytest.mark.parametrize("point", [(float("nan"), 0), (float("inf"), 1), (1e9, 1), (-50, 2)])
def test_points_far_away_or_nowhere_are_refused(point: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="far outside"):
        fill_polygons([np.array([[0, 0], [4, 4], point])], (10, 10))


def test_outlines_longer_than_any_are_refused_before_they_cost_memory() -> None:
    zigzag = np.tile(np.array([[0, 0], [0, 20000]], float), (500, 1))
    with pytest.raises(InputError, match="outline is 20000000 pixels long"):
        fill_polygons([zigzag], (20000, 20000))


def test_the_empty_mask_and_the_whole_image() -> None:
    assert len(joined_outline(window(np.zeros((4, 5), bool)))) == 0
    (whole,) = outlines(window(np.ones((4, 5), bool)))
    assert whole.points.tolist() == [[0, 0], [0, 4], [5, 4], [5, 0]]
    assert fill_polygons([], (4, 5)).area == 0


@EXAMPLES
@given(MASKS, st.sampled_from([0.5, 0.75, 2, 30]))
def test_masks_of_few_pixels_lose_none_by_any_tolerance(mask: np.ndarray, tolerance: float) -> None:
    placed = window(mask, 1, 2)
    parts = polygons_of(placed, tolerance)
    again = fill_polygons([ring for part in parts for ring in part], placed.image_size)
    changed = np.count_nonzero(again.paste() ^ placed.paste())
    assert changed <= 0.01 * placed.area
    polygons = coco_polygons(Mask.from_window(placed), tolerance)
    if placed.area:
        drawn = mask_from_segmentation(polygons, lambda: placed.size)
        assert np.count_nonzero(drawn.decode().paste() ^ placed.paste()) <= 0.01 * placed.area


def test_a_rectangle_has_four_points_and_a_disc_a_few() -> None:
    disc = np.hypot(*(np.indices((300, 300)) - 150.3)) < 100
    (square,), (circle,) = polygons_of(window(np.ones((50, 70), bool)), 0.75), polygons_of(window(disc), 0.75)
    assert len(square[0]) == 4
    assert len(circle[0]) < 40 < len(joined_outline(window(disc))) / 10
    again = fill_polygons(circle, disc.shape).paste()
    assert (again & disc).sum() / (again | disc).sum() > 0.99
    assert abs(int(again.sum()) - int(disc.sum())) < 0.002 * disc.sum()


def test_holes_stay_holes_in_polygons_of_coco() -> None:
    ring = np.hypot(*(np.indices((200, 200)) - 99.3)) < 80
    ring &= np.hypot(*(np.indices((200, 200)) - 90.7)) > 30
    for tolerance in (0, 0.75):
        (polygon,) = coco_polygons(Mask.from_window(window(ring)), tolerance)
        drawn = mask_from_segmentation([polygon], lambda: ring.shape).decode().paste()
        assert (drawn & ring).sum() / (drawn | ring).sum() >= (0.99 if tolerance else 1)
