"""Propagation from coarse to fine levels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from transfiner_refine.model.propagate import (
    corrected_labels,
    halvings,
    propagate,
    propagate_corrections,
    signed_depth,
)
from transfiner_refine.model.quadtree import children_of, roots_of


def coarse_mask() -> torch.Tensor:
    return (torch.rand(2, 1, 448, 448, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def test_halvings_are_area_averages() -> None:
    mask = coarse_mask()
    averages = halvings(mask, 28)
    assert sorted(averages) == [28, 56, 112, 224, 448]
    for side, average in averages.items():
        torch.testing.assert_close(average, F.avg_pool2d(mask, 448 // side), atol=1e-6, rtol=0)


def test_without_nodes_every_level_is_the_coarse_mask() -> None:
    mask = coarse_mask()
    averages = halvings(mask, 28)
    empty = roots_of(torch.zeros(2, 28, 28, dtype=torch.bool))
    levels = [empty, children_of(empty), children_of(children_of(empty))]
    for level, result in zip(levels, propagate(averages, levels, [torch.zeros(0)] * 3), strict=True):
        assert torch.equal(result.probability, averages[level.grid][:, 0])
        assert not result.refined.any()


def test_nodes_get_their_probability_and_their_surroundings_are_upsampled_from_above() -> None:
    averages = halvings(torch.zeros(1, 1, 448, 448), 28)
    selected = torch.zeros(1, 28, 28, dtype=torch.bool)
    selected[0, 10, 10] = True
    roots = roots_of(selected)
    children = children_of(roots)
    one = children.take(torch.tensor([3]))  # bottom right quadrant
    first, second = propagate(averages, [roots, one], [torch.tensor([1.0]), torch.tensor([0.25])])
    assert float(first.probability[0, 10, 10]) == 1.0
    assert float(second.probability[0, 21, 21]) == 0.25
    # the other three quadrants come from the 28 level by bilinear upsampling: 9/16 of the cell itself
    torch.testing.assert_close(second.probability[0, 20, 20], torch.tensor(0.5625))
    # outside the root nothing changes, however near
    assert float(second.probability[0, 19, 20]) == 0.0
    assert int(second.refined.sum()) == 4


def dense_labels(grids: tuple[int, ...] = (28, 56)) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {grid: torch.randn(1, grid, grid, generator=generator) for grid in grids}


def test_without_nodes_cells_labelled_anew_take_the_dense_label_and_the_others_the_coarse_mask() -> None:
    averages, dense = halvings(coarse_mask()[:1], 28), dense_labels()
    empty = roots_of(torch.zeros(1, 28, 28, dtype=torch.bool))
    relabelled = torch.zeros(1, 28, 28, dtype=torch.bool)
    relabelled[0, 3, 4] = True
    levels = [empty, children_of(empty)]
    maps = propagate_corrections(averages, dense, relabelled, levels, [torch.zeros(0)] * 2)
    inside = relabelled.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(maps[1].refined, inside)
    assert torch.equal(maps[1].probability[inside], torch.sigmoid(dense[56][inside]))
    assert torch.equal(maps[1].probability[~inside], averages[56][:, 0][~inside])


def test_a_correction_holds_below_its_node_until_a_finer_node_overrules_it() -> None:
    averages, dense = halvings(torch.zeros(1, 1, 448, 448), 28), dense_labels()
    selected = torch.ones(1, 28, 28, dtype=torch.bool)
    roots = roots_of(selected)
    one = children_of(roots).take(torch.tensor([0]))
    label = dense[28].flatten() + 2.0  # every root adds 2
    first, second = propagate_corrections(
        averages, dense, selected, [roots, one], [label, torch.tensor([-1.5])]
    )
    torch.testing.assert_close(first.probability, torch.sigmoid(dense[28] + 2))
    expected = torch.sigmoid(dense[56] + 2)
    expected[0, 0, 0] = torch.sigmoid(torch.tensor(-1.5))
    torch.testing.assert_close(second.probability, expected)


def test_the_given_mask_decides_where_the_network_is_of_two_minds() -> None:
    shares = torch.zeros(1, 1, 448, 448)
    shares[..., 224:] = 1.0
    averages, doubtful = halvings(shares, 28), {28: torch.full((1, 28, 28), 0.2)}
    none = roots_of(torch.zeros(1, 28, 28, dtype=torch.bool))
    everywhere = torch.ones(1, 28, 28, dtype=torch.bool)
    plain, trusting = (
        propagate_corrections(averages, doubtful, everywhere, [none], [torch.zeros(0)], trust)[0].probability
        for trust in (0.0, 0.3)
    )
    assert bool((plain > 0.5).all())
    assert torch.equal(trusting > 0.5, averages[28][:, 0] > 0.5)


@given(seed=st.integers(0, 2**32 - 1), most=st.integers(1, 12))
def test_depth_is_the_chessboard_distance_to_the_outline(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    shares = cv2.resize(rng.random((7, 5), np.float32), (30, 30))
    inside, outside = (shares >= 0.5).astype(np.uint8), (shares < 0.5).astype(np.uint8)
    within, beyond = (cv2.distanceTransform(side, cv2.DIST_C, 3).clip(0, most) for side in (inside, outside))
    depth = signed_depth(torch.from_numpy(shares)[None, None], most)
    np.testing.assert_array_equal(depth[0, 0].numpy(), within - beyond)


def test_far_from_its_outline_the_given_mask_takes_more_to_overrule() -> None:
    shares = torch.zeros(1, 1, 448, 448)
    shares[..., 224:] = 1.0
    averages = halvings(shares, 28)
    against = {28: torch.linspace(1, -1, 28).expand(1, 28, 28).clone()}
    none = roots_of(torch.zeros(1, 28, 28, dtype=torch.bool))
    everywhere = torch.ones(1, 28, 28, dtype=torch.bool)
    before, after = (
        propagate_corrections(averages, against, everywhere, [none], [torch.zeros(0)], 0.0, deep)[0]
        for deep in (0.0, 0.15)
    )
    assert torch.equal(before.probability > 0.5, averages[28][:, 0] < 0.5)
    moved = (after.probability.logit() - before.probability.logit())[0, 0]
    right = moved[14:]
    assert bool((right > 0).all())
    assert bool((right.diff() > -1e-5).all())
    torch.testing.assert_close(moved[:14], -right.flip(0))
    assert float(right[-1]) == pytest.approx(0.15 * 8 * 100 / 56, rel=1e-4)


def test_a_node_answers_for_every_cell_that_its_correction_reaches() -> None:
    dense = dense_labels()
    selected = torch.zeros(1, 28, 28, dtype=torch.bool)
    selected[0, 10, 10] = True
    roots = roots_of(selected)
    none = children_of(roots).take(torch.zeros(0, dtype=torch.int64))
    logit = torch.tensor([3.0], requires_grad=True)
    fine = corrected_labels(dense, [roots, none], [logit, torch.zeros(0)])[1]
    fine.sum().backward()
    # bilinear doubling spreads a cell's value with weights that add up to four
    torch.testing.assert_close(logit.grad, torch.tensor([4.0]))
    assert torch.equal(fine[0, :18] != dense[56][0, :18], torch.zeros(18, 56, dtype=torch.bool))


def test_levels_without_dense_labels_go_on_with_the_finest() -> None:
    averages, dense = halvings(torch.zeros(1, 1, 448, 448), 28), dense_labels((28,))
    roots = roots_of(torch.zeros(1, 28, 28, dtype=torch.bool))
    everywhere = torch.ones(1, 28, 28, dtype=torch.bool)
    maps = propagate_corrections(
        averages, dense, everywhere, [roots, children_of(roots)], [torch.zeros(0)] * 2
    )
    finer = F.interpolate(dense[28][:, None], scale_factor=2, mode="bilinear")[:, 0]
    torch.testing.assert_close(maps[1].probability, torch.sigmoid(finer))


def test_cells_are_labelled_anew_where_the_mask_is_contradicted_whatever_the_detector_says() -> None:
    mask = torch.zeros(1, 1, 448, 448)
    mask[..., 100:300, 100:300] = 1.0
    speckled = mask.clone()
    speckled[..., 20, 400] = 1.0  # a single pixel outside
    speckled[..., 201:203, 203:205] = 0.0  # a pinhole inside
    averages, right = halvings(speckled, 28), halvings(mask, 28)
    dense = {grid: 12 * right[grid].squeeze(1) - 6 for grid in (28, 56, 112)}
    none = roots_of(torch.zeros(1, 28, 28, dtype=torch.bool))
    levels = [none, children_of(none), children_of(children_of(none))]
    nowhere = torch.zeros(1, 28, 28, dtype=torch.bool)

    def refined(margin: float) -> torch.Tensor:
        args = (averages, dense, nowhere, levels, [torch.zeros(0)] * 3)
        return propagate_corrections(*args, margin=margin)[0].refined[0]

    anew = refined(0.25)
    assert bool(anew[20 // 16, 400 // 16])
    assert bool(anew[201 // 16, 203 // 16])
    outside = right[28][0, 0] == 0
    assert int(anew[outside].sum()) == 1  # and nowhere else off the object
    assert not refined(1.0).any()
