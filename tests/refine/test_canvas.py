"""Batched tensor operations on RoIs against the NumPy and OpenCV functions for one RoI."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.refine.canvas import (
    axis_matrix,
    boundaries,
    boxes_of,
    cut_out,
    kept_patches,
    rasterise,
    resample_maps,
    spread_cells,
    tile_weights,
)
from transfiner_refine.refine.instance import edge_weights, patches_if_agreed
from transfiner_refine.refine.roi import Roi, crop_roi, paste_into_roi, read_mask, resample

CANVAS = 128
sides = st.integers(1, CANVAS)
seeds = st.integers(0, 10_000)


def whole(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def blobs(rng: np.random.Generator, height: int, width: int, cells: int = 9) -> NDArray[np.bool_]:
    """A smooth random mask."""
    return resample(rng.random((cells, cells), np.float32), width, height) > 0.5


@settings(max_examples=40, deadline=None)
@given(height=sides, width=sides, target=st.sampled_from([28, 56, 112, 224]), seed=seeds)
def test_resampling_by_matrices_is_the_resampling_of_one_roi(
    height: int, width: int, target: int, seed: int
) -> None:
    values = np.random.default_rng(seed).random((height, width), np.float32)
    canvas = torch.zeros(1, 1, CANVAS, CANVAS)
    canvas[0, 0, :height, :width] = torch.from_numpy(values)
    goal = whole(target)
    rows, columns = (axis_matrix(target, CANVAS, goal, whole(length)) for length in (height, width))
    expected = resample(values, target, target)
    np.testing.assert_allclose(resample_maps(canvas, rows, columns)[0, 0], expected, atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(height=sides, width=sides, x0=st.integers(0, 40), y0=st.integers(0, 40), seed=seeds)
def test_pixels_of_a_cut_out_roi_differ_by_rounding_only(
    height: int, width: int, x0: int, y0: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (y0 + height + 3, x0 + width + 5, 3), np.uint8)
    roi = Roi(x0, y0, x0 + width, y0 + height)
    first = torch.tensor([7 + y0 * image.shape[1] + x0])  # another image of seven pixels lies before
    pixels = torch.cat((torch.zeros(7, 3, dtype=torch.uint8), torch.from_numpy(image.reshape(-1, 3))))
    cut = cut_out(pixels, first, torch.tensor([image.shape[1]]), whole(height), whole(width), CANVAS)
    rows, columns = (axis_matrix(56, CANVAS, whole(56), whole(length)) for length in (height, width))
    resized = resample_maps(cut, rows, columns, whole=True)[0].permute(1, 2, 0).numpy()
    # OpenCV's weights have 11 bits, and it rounds after each axis
    assert np.abs(resized - crop_roi(image, roi, 56).astype(np.float32)).max() <= 2


@settings(max_examples=40, deadline=None)
@given(seed=seeds, height=st.integers(1, 90), width=st.integers(1, 90))
def test_runs_are_rasterised_in_the_roi_and_found_again(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    mask = blobs(rng, height, width)
    encoded = Mask.from_window(MaskWindow(mask, 0, 0, (height, width)))
    ends = np.append(np.cumsum(encoded.runs)[:-1], 1 << 40)
    x0, y0 = int(rng.integers(width)), int(rng.integers(height))
    roi = Roi(x0, y0, width, height)
    place = [torch.tensor([number]) for number in (x0, y0, height)]
    drawn = rasterise(torch.from_numpy(ends)[None], *place, CANVAS)
    inside = drawn[0, : roi.height, : roi.width].numpy()
    assert np.array_equal(inside, mask[y0:, x0:])
    only = torch.zeros_like(drawn)
    only[0, : roi.height, : roi.width] = torch.from_numpy(inside)
    counts, found = boundaries(only, *place, 4 * CANVAS)
    runs = np.diff(found[: int(counts)].numpy(), prepend=0, append=height * width)
    again = Mask.from_runs(runs, (height, width)).decode().paste()
    expected = np.zeros_like(mask)
    expected[y0:, x0:] = mask[y0:, x0:]
    assert np.array_equal(again, expected)
    if expected.any():
        box = Mask.from_window(MaskWindow(expected, 0, 0, (height, width))).box
        assert tuple(boxes_of(only, place[0], place[1])[0].tolist()) == box


def test_only_as_many_boundaries_are_given_as_there_is_room_for() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, ::2] = True
    place = [torch.tensor([number]) for number in (0, 0, 8)]
    counts, few = boundaries(mask, *place, 5)
    _, all_of_them = boundaries(mask, *place, 64)
    assert int(counts) == 64
    assert torch.equal(few, all_of_them[:5])


@settings(max_examples=30, deadline=None)
@given(height=sides, width=sides, seed=seeds)
def test_labels_are_pasted_as_into_one_roi(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    probability, cells = rng.random((112, 112), np.float32), rng.random((28, 28)) < 0.5
    mask = MaskWindow(blobs(rng, height, width), 0, 0, (height, width))
    roi = Roi(0, 0, width, height)
    expected = paste_into_roi(probability, cells.repeat(4, 0).repeat(4, 1), mask, roi)
    rows, columns = (axis_matrix(CANVAS, 112, whole(length), whole(112)) for length in (height, width))
    pasted = resample_maps(torch.from_numpy(probability)[None, None], rows, columns)[0, 0]
    relabelled = spread_cells(
        torch.from_numpy(cells)[None], whole(height), whole(width), CANVAS, whole(0), whole(0)
    )[0]
    values = torch.where(relabelled, pasted, 0)[:height, :width].numpy()
    given_mask = np.where(relabelled[:height, :width], 0, read_mask(mask, roi))
    # a pixel whose centre lies on the edge of two cells may take either
    on_edge = [(np.arange(length) + 0.5) * 28 / length % 1 == 0 for length in (height, width)]
    clear = ~(on_edge[0][:, None] | on_edge[1])
    np.testing.assert_allclose((values + given_mask)[clear], expected[clear], atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(12, CANVAS), width=st.integers(12, CANVAS), change=st.floats(0, 0.15), seed=seeds)
def test_masks_are_kept_as_the_rule_for_one_instance_says(
    height: int, width: int, change: float, seed: int
) -> None:
    rng, config = np.random.default_rng(seed), RefinerConfig()
    values = resample(rng.random((7, 7), np.float32), width, height)
    before, after = (
        values > 0.5,
        values + change * (resample(rng.random((5, 5), np.float32), width, height) - 0.5) > 0.5,
    )
    if not before.any():
        return
    expected = patches_if_agreed(before, after, config)
    framed = torch.zeros(3, 1, CANVAS, CANVAS, dtype=torch.bool)
    for canvas, part in zip(framed, (before, after, np.ones_like(before)), strict=True):
        canvas[0, :height, :width] = torch.from_numpy(part)
    agreed, patches = kept_patches(*framed, config.keep_shift, config.keep_patch, config.keep_rest)
    # OpenCV's distances are approximate, so a disc may fit by one of them and not by the other
    if expected is None:
        assert not agreed or patches.any()
    elif bool(agreed):
        differ = patches[0, :height, :width].numpy() != expected
        assert np.count_nonzero(differ) <= 0.02 * before.size
    else:
        assert patches.any()


@given(start=st.integers(0, 60), length=st.integers(1, 60), rest=st.integers(0, 60))
def test_weights_of_windows_are_those_of_one_roi(start: int, length: int, rest: int) -> None:
    total = start + length + rest
    expected = np.zeros(180, np.float32)
    expected[start : start + length] = edge_weights(start, start + length, total)
    weights = tile_weights(whole(start), whole(length), whole(total), 180)[0]
    np.testing.assert_allclose(weights, expected, atol=1e-6)
