"""COCO run-length masks: equal to pycocotools on sound input, an InputError on everything else."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, mask_from_segmentation
from transfiner_refine.formats.segmentation import masks_from_segmentations
from transfiner_refine.masks import MaskWindow

bitmaps = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(lambda shape: arrays(bool, shape))


def whole(bitmap: np.ndarray) -> MaskWindow:
    return MaskWindow(bitmap, 0, 0, bitmap.shape)


def reference(bitmap: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))["counts"].decode("ascii")


def no_size() -> tuple[int, int]:
    raise AssertionError("an RLE carries its size, nobody should ask for it")


@given(bitmaps)
def test_encoding_equals_pycocotools(bitmap: np.ndarray) -> None:
    assert Mask.from_window(whole(bitmap)).counts == reference(bitmap)


@given(bitmaps)
def test_a_tight_window_encodes_as_the_whole_image_does(bitmap: np.ndarray) -> None:
    assert Mask.from_window(whole(bitmap).tight()).counts == reference(bitmap)


@given(bitmaps)
def test_decoding_gives_the_mask_in_its_tight_box(bitmap: np.ndarray) -> None:
    window = Mask(bitmap.shape, reference(bitmap)).decode()
    assert np.array_equal(window.paste(), bitmap)
    assert window.values.shape == window.tight().values.shape


@given(bitmaps)
def test_box_and_area_equal_pycocotools(bitmap: np.ndarray) -> None:
    mask = Mask.from_window(whole(bitmap))
    rle = {"size": list(mask.size), "counts": mask.counts}
    x0, y0, x1, y1 = mask.box
    assert mask.area == int(coco_mask.area(rle))
    assert [x0, y0, x1 - x0, y1 - y0] == coco_mask.toBbox(rle).tolist()


@given(bitmaps)
def test_uncompressed_runs_become_the_same_text(bitmap: np.ndarray) -> None:
    mask = Mask.from_window(whole(bitmap))
    uncompressed = {"size": list(mask.size), "counts": mask.runs.tolist()}
    assert mask_from_segmentation(uncompressed, no_size) == mask


@given(st.lists(bitmaps, min_size=1, max_size=6))
def test_many_masks_at_once_are_what_each_is_alone(many: list[np.ndarray]) -> None:
    segmentations = [{"size": list(bitmap.shape), "counts": reference(bitmap)} for bitmap in many]
    alone = [mask_from_segmentation(each, no_size) for each in segmentations]
    assert masks_from_segmentations(segmentations, no_size) == alone
    fresh = [Mask.from_runs(mask.runs, mask.size) for mask in alone]
    Mask.encode(fresh)
    assert [mask.counts for mask in fresh] == [reference(bitmap) for bitmap in many]


@pytest.mark.parametrize("damage", ["5ä3", "5 3", "5P", "PPPPPPPPPPPP0", "53", "O?", "9\ud800"])
def test_beside_a_damaged_mask_the_sound_ones_are_read_and_it_is_not(damage: str) -> None:
    sound = {"size": [3, 3], "counts": "9"}
    many = [sound, {"size": [3, 3], "counts": damage}, sound]
    first, second, third = masks_from_segmentations(many, no_size)
    assert first == third == Mask((3, 3), "9")
    assert isinstance(second, InputError)


def test_segmentations_of_any_kind_are_read_side_by_side() -> None:
    mask = Mask((3, 3), "9")
    sound = [
        {"size": [3, 3], "counts": "9"},
        {"size": [3.0, "3"], "counts": "9"},
        {"size": [3, 3], "counts": [9]},
    ]
    damaged = [None, {"size": [True, 3], "counts": "3"}, {"size": [3, 3], "counts": ""}, {"counts": "9"}]
    found = masks_from_segmentations([[], *sound, *damaged, *sound], lambda: (3, 3))
    assert found[:4] == [mask] * 4
    assert all(isinstance(each, InputError) for each in found[4:8])
    assert found[8:] == [mask] * 3


@given(bitmaps)
def test_a_mask_that_was_pickled_or_kept_as_text_is_the_same(bitmap: np.ndarray) -> None:
    mask = Mask.from_window(whole(bitmap))
    for measured in (False, True):
        other = Mask.from_window(whole(bitmap))
        if measured:
            assert other.area == bitmap.sum()
            assert other.box == mask.box
        other = pickle.loads(pickle.dumps(other))
        assert (other, hash(other), other.counts, other.box) == (mask, hash(mask), mask.counts, mask.box)
    restored = Mask.restored(mask.size, mask.counts, mask.area, mask.box)
    assert (restored, restored.runs.tolist()) == (mask, mask.runs.tolist())
    assert np.array_equal(restored.decode().paste(), bitmap)


def test_masks_are_equal_by_content_and_cannot_be_changed() -> None:
    mask = Mask.from_runs([2, 3, 4], (3, 3))
    assert mask == Mask.from_runs(np.array([2, 3, 4]), (3, 3))
    assert mask not in (Mask.from_runs([2, 3, 4], (1, 9)), Mask.from_runs([3, 2, 4], (3, 3)), "234")
    with pytest.raises(ValueError, match="read-only"):
        mask.runs[0] = 3
    spelt_longer = Mask((3, 3), "R034")  # as pycocotools reads it, but does not write it: 2 in two groups
    assert (spelt_longer, spelt_longer.counts) == (mask, "234")


@given(st.integers(1, 24).flatmap(lambda side: st.tuples(arrays(bool, (side, 7)), arrays(bool, (side, 7)))))
def test_the_pixels_in_which_two_masks_differ_are_counted(pair: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = (Mask.from_window(whole(bitmap)) for bitmap in pair)
    assert one.differing(other) == other.differing(one) == np.count_nonzero(pair[0] != pair[1])


def test_long_runs_of_a_large_image_survive() -> None:
    size = (20_000, 20_000)
    mask = Mask.from_window(MaskWindow(np.ones((3, 2), bool), 19_990, 7, size))
    assert mask.area == 6
    assert mask.box == (19_990, 7, 19_992, 10)
    assert mask.decode().values.shape == (3, 2)


def test_soft_values_count_from_one_half_on() -> None:
    window = MaskWindow(np.array([[0.49, 0.5, 0.9]], np.float32), 1, 0, (1, 5))
    assert Mask.from_window(window).runs.tolist() == [2, 2, 1]


def test_counts_may_be_bytes_as_pycocotools_returns_them() -> None:
    bitmap = np.eye(4, dtype=bool)
    rle = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    assert np.array_equal(mask_from_segmentation(rle, no_size).decode().paste(), bitmap)


def test_runs_of_no_pixels_are_joined_to_their_neighbours() -> None:
    mask = Mask.from_runs([2, 0, 1, 2, 0, 1, 3], (3, 3))
    assert mask.runs.tolist() == [3, 3, 3]
    assert np.flatnonzero(mask.decode().paste().T.ravel()).tolist() == [3, 4, 5]


@given(bitmaps, st.lists(st.integers(0, 40), max_size=30))
def test_however_a_mask_is_cut_into_runs_it_is_the_same(bitmap: np.ndarray, places: list[int]) -> None:
    runs = Mask.from_window(whole(bitmap)).runs.tolist()
    for place in places:  # a run in two, with one of no pixels between
        at = place % len(runs)
        runs[at : at + 1] = [runs[at] - runs[at] // 2, 0, runs[at] // 2]
    mask = Mask.from_runs(runs, bitmap.shape)
    assert mask == Mask.from_window(whole(bitmap))
    # what pycocotools would get wrong, or crash on
    rle = {"size": list(mask.size), "counts": mask.counts}
    assert coco_mask.iou([rle], [rle], [0])[0, 0] == (1 if bitmap.any() else 0)
    assert coco_mask.merge([rle, rle])["counts"].decode() == mask.counts


def test_polygons_are_drawn_as_pycocotools_draws_them() -> None:
    polygons = [[2.5, 3, 20, 4.25, 11, 17], [30, 5, 38, 5, 38, 20, 30, 20]]
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 30, 40)))
    assert np.array_equal(
        mask_from_segmentation(polygons, lambda: (30, 40)).decode().paste(), drawn.astype(bool)
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-15, 45), min_size=6, max_size=6), min_size=1, max_size=60))
def test_many_polygons_are_united_as_pycocotools_unites_them(polygons: list[list[float]]) -> None:
    united = coco_mask.merge(coco_mask.frPyObjects(polygons, 30, 40))
    assert mask_from_segmentation(polygons, lambda: (30, 40)).counts == united["counts"].decode()


def test_no_polygons_are_an_empty_mask() -> None:
    assert mask_from_segmentation([], lambda: (3, 4)).area == 0


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ({"size": [3, 3], "counts": [4, 4]}, "add up to 8 pixels, but its size 3×3 has 9"),
        ({"size": [3, 3], "counts": [10, -1]}, "run 1 of the RLE is -1"),
        ({"size": [3, 3], "counts": [10**40]}, "run 0 of the RLE is 1000"),
        ({"size": [3, 3], "counts": [4.5, 4.5]}, "run 0 of the RLE is 4.5"),
        ({"size": [3, 3], "counts": ["9"]}, "run 0 of the RLE is '9'"),
        ({"size": [3, 3], "counts": ""}, "add up to 0 pixels"),
        ({"size": [3, 3], "counts": "9!"}, "'!' at character 1"),
        ({"size": [3, 3], "counts": "9é"}, "'é' at character 1"),
        ({"size": [3, 3], "counts": b"9\xff"}, "'ÿ' at character 1"),
        ({"size": [3, 3], "counts": "9T"}, "end in the middle of a number"),
        ({"size": [3, 3], "counts": "9O"}, "run 1 of the RLE is negative"),
        ({"size": [3, 3], "counts": "oooooooooooo0"}, "longer than any image"),
        ({"size": [0, 0], "counts": []}, "size is 0×0"),
        ({"size": [10**9, 10**9], "counts": [10**9]}, "not that of an image"),
        ({"size": [10**300, 10**300], "counts": [10**300]}, "not that of an image"),
        ({"size": [True, True], "counts": [1]}, "size is [True, True]"),
        ({"size": [3.5, 3.0], "counts": [9]}, "size is [3.5, 3.0]"),
        ({"size": [3, 3], "counts": [True] * 9}, "run 0 of the RLE is True"),
        ({"size": [3, 3], "counts": [2**40, 9 - 2**40]}, "run 0 of the RLE is 1099511627776"),
        ({"size": [-3, -3], "counts": [9]}, "size is -3×-3"),
        ({"size": [3], "counts": [9]}, "size is [3]"),
        ({"size": "33", "counts": [9]}, "size is '33'"),
        ({"size": [3, 3]}, "counts are missing"),
        (None, "segmentation is missing"),
        ("abc", "segmentation is 'abc'"),
        ([[1, 2, 3, 4]], "polygon 0 is [1, 2, 3, 4], not a list"),
        ([[1, 2, 3, 4, 5, 6, 7]], "polygon 0 is"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not a finite number"),
        ([[1, 2, 3, 4, 5, "6"]], "not a finite number"),
        ([[1, 2, 3, 4, 5, 1e12]], "far outside its 40×30 image"),
        ([[1, 2, 3, 4, 5, 10**400]], "not a finite number"),
        ([[1, 2, 3, 4, 5, True]], "not a finite number"),
        ([[0, 0, 39, 0, 39, 29] * 100_000], "more than the 4000000 allowed"),
    ],
)
def test_a_damaged_segmentation_is_refused_with_its_reason(segmentation: object, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        mask_from_segmentation(segmentation, lambda: (30, 40))
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 300


def number(value: int) -> str:
    """One number of a compressed RLE."""
    low, value = value & 31, value >> 5
    more = value != (-1 if low & 16 else 0)
    return chr(low + 32 * more + 48) + (number(value) if more else "")


def test_runs_whose_sum_comes_round_in_64_bits_are_refused() -> None:
    step, odd, total = (1 << 29) - 1, 0, 0  # odd runs are 1, 2, 3 ... steps long
    while total + (odd + 1) * step < 2**64:
        odd += 1
        total += odd * step
    even = (2**64 + 9 - total) // odd
    last = 2**64 + 9 - total - even * (odd - 1)
    counts = number(0) + number(step) + number(even) + (number(step) + number(0)) * (odd - 2)
    counts += number(step) + number(last - even)
    assert len(counts) < 4_000_000
    with pytest.raises(InputError, match=rf"add up to {2**64 + 9} pixels, but its size 3×3 has 9"):
        Mask((3, 3), counts)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# each takes about 0.2 s on one core; what grows with the square of the length would take minutes
def test_half_a_million_runs_take_no_quadratic_time() -> None:
    runs = [1 + i % 7 for i in range(500_000)]
    runs[-1] += -sum(runs) % 1000
    size = [1000, sum(runs) // 1000]
    mask = mask_from_segmentation({"size": size, "counts": runs}, no_size)
    assert seconds(lambda: mask_from_segmentation({"size": size, "counts": runs}, no_size)) < 5
    assert seconds(lambda: Mask(mask.size, mask.counts).decode()) < 5


def test_a_million_points_take_no_quadratic_time() -> None:
    angles = np.linspace(0, 2 * np.pi, 1_000_000)
    radii = 900 + 50 * np.sin(7 * angles)
    points = np.stack((1000 + radii * np.cos(angles), 1000 + radii * np.sin(angles)), 1)
    assert seconds(lambda: mask_from_segmentation([points.ravel().tolist()], lambda: (2000, 2000))) < 5


def test_ten_thousand_polygons_take_no_quadratic_time() -> None:
    corners = np.random.default_rng(0).integers(0, 1990, (10_000, 2)).tolist()
    polygons = [[x, y, x + 5, y, x + 5, y + 5] for x, y in corners]
    assert seconds(lambda: mask_from_segmentation(polygons, lambda: (2000, 2000))) < 5


@settings(max_examples=300)
@given(
    st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_any_text_is_refused_or_means_what_pycocotools_reads(counts: str, height: int, width: int) -> None:
    try:
        mask = Mask((height, width), counts)
    except InputError:
        return
    reference_mask = coco_mask.decode({"size": [height, width], "counts": counts})
    assert np.array_equal(mask.decode().paste(), reference_mask.astype(bool))


@given(bitmaps, st.integers(1, 4))
def test_a_stretched_mask_keeps_straight_edges_and_nothing_else_moves(bitmap: np.ndarray, scale: int) -> None:
    box = np.zeros_like(bitmap)
    rows, columns = np.nonzero(bitmap)
    if len(rows):
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    larger = whole(box).tight().resized((scale * box.shape[0], scale * box.shape[1]))
    expected = np.kron(box, np.ones((scale, scale), bool))
    # but for what a corner loses to the line between the centres of its pixels
    assert np.count_nonzero(larger.paste() != expected) <= 4 * (scale > 2)
    assert np.array_equal(whole(bitmap).resized(bitmap.shape).paste(), bitmap)
