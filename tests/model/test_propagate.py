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
    LevelMap,
    area_pyramid,
    corrected_labels,
    propagate_corrections,
    signed_depth,
)
from transfiner_refine.model.quadtree import QuadtreeNodes, children_of, root_cells


def coarse_mask() -> torch.Tensor:
    return (torch.rand(2, 1, 448, 448, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def test_halvings_are_area_averages() -> None:
    mask = coarse_mask()
    averages = area_pyramid(mask, 28)
    assert sorted(averages) == [28, 56, 112, 224, 448]
    for side, average in averages.items():
        torch.testing.assert_close(average, F.avg_pool2d(mask, 448 // side), atol=1e-6, rtol=0)


def tree(*selected: torch.Tensor) -> list[QuadtreeNodes]:
    """Levels whose nodes are the True cells of ``selected``, [B, grid, grid] bool each, with a place for every cell."""
    levels = [root_cells(28, selected[0])]
    while len(levels) < len(selected):
        levels.append(children_of(levels[-1]))
    every = [torch.arange(level.y.shape[1]).expand_as(level.y) for level in levels]
    return [
        level.take(index, cells.flatten(1).gather(1, level.cell))
        for level, index, cells in zip(levels, every, selected, strict=True)
    ]


def nowhere(levels: int, batch: int = 1) -> list[torch.Tensor]:
    """No cell on any level."""
    return [torch.zeros(batch, 28 << i, 28 << i, dtype=torch.bool) for i in range(levels)]


def at_cells(levels: list[QuadtreeNodes], maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """The values of maps [B, grid, grid] at the nodes' cells: [B, K] each."""
    return [cells.flatten(1).gather(1, level.cell) for level, cells in zip(levels, maps, strict=True)]


def in_places(level: QuadtreeNodes, logit: torch.Tensor) -> torch.Tensor:
    """``logit`` for every node; what stands in places without a node must not count."""
    assert level.valid is not None
    return torch.where(level.valid, logit, 1e3)


def the_labels(
    dense: dict[int, torch.Tensor], levels: list[QuadtreeNodes], logits: list[torch.Tensor]
) -> list[torch.Tensor]:
    filled = [in_places(level, logit) for level, logit in zip(levels, logits, strict=True)]
    return corrected_labels(dense, levels, filled)


def propagated(
    coarse: dict[int, torch.Tensor],
    dense: dict[int, torch.Tensor],
    relabelled: torch.Tensor,
    levels: list[QuadtreeNodes],
    logits: list[torch.Tensor],
    **settings: float,
) -> list[LevelMap]:
    return propagate_corrections(coarse, the_labels(dense, levels, logits), relabelled, **settings)


def test_where_nothing_is_relabelled_every_level_is_the_coarse_mask() -> None:
    mask = coarse_mask()
    averages, levels = area_pyramid(mask, 28), tree(*nowhere(3, 2))
    dense = {grid: torch.randn(2, grid, grid) for grid in (28, 56, 112)}
    none = [torch.zeros_like(level.y, dtype=torch.float32) for level in levels]
    maps = propagated(averages, dense, nowhere(1, 2)[0], levels, none)
    for level, result in zip(levels, maps, strict=True):
        assert torch.equal(result.probability, averages[level.grid][:, 0])
        assert not result.relabelled.any()


def dense_labels(grids: tuple[int, ...] = (28, 56)) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {grid: torch.randn(1, grid, grid, generator=generator) for grid in grids}


def test_without_nodes_cells_relabelled_take_the_dense_label_and_the_others_the_coarse_mask() -> None:
    averages, dense = area_pyramid(coarse_mask()[:1], 28), dense_labels()
    relabelled = nowhere(1)[0]
    relabelled[0, 3, 4] = True
    levels = tree(*nowhere(2))
    maps = propagated(averages, dense, relabelled, levels, at_cells(levels, list(dense.values())))
    inside = relabelled.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(maps[1].relabelled, inside)
    assert torch.equal(maps[1].probability[inside], torch.sigmoid(dense[56][inside]))
    assert torch.equal(maps[1].probability[~inside], averages[56][:, 0][~inside])


def test_a_correction_holds_below_its_node_until_a_finer_node_overrules_it() -> None:
    averages, dense = area_pyramid(torch.zeros(1, 1, 448, 448), 28), dense_labels()
    everywhere, one = torch.ones(1, 28, 28, dtype=torch.bool), nowhere(2)[1]
    one[0, 0, 0] = True
    levels = tree(everywhere, one)
    (label, _) = at_cells(levels, list(dense.values()))
    fine = torch.full_like(levels[1].y, -1.5, dtype=torch.float32)
    first, second = propagated(averages, dense, everywhere, levels, [label + 2.0, fine])  # every root adds 2
    torch.testing.assert_close(first.probability, torch.sigmoid(dense[28] + 2))
    expected = torch.sigmoid(dense[56] + 2)
    expected[0, 0, 0] = torch.sigmoid(torch.tensor(-1.5))
    torch.testing.assert_close(second.probability, expected)


def test_nodes_get_their_label_and_their_surroundings_the_correction_upsampled_from_above() -> None:
    averages = area_pyramid(torch.zeros(1, 1, 448, 448), 28)
    dense = {grid: torch.zeros(1, grid, grid) for grid in (28, 56)}
    root, child = nowhere(2)
    root[0, 10, 10] = child[0, 21, 21] = True  # of the root's quadrants the bottom right one
    levels = tree(root, child)
    logits = [
        torch.full_like(level.y, v, dtype=torch.float32) for level, v in zip(levels, (1.0, 0.25), strict=True)
    ]
    maps = propagated(averages, dense, root, levels, logits)
    first, second = (each.probability[0].logit() for each in maps)
    torch.testing.assert_close(first[10, 10], torch.tensor(1.0))
    torch.testing.assert_close(second[21, 21], torch.tensor(0.25))
    # the other three quadrants come from the 28 level by bilinear upsampling: 9/16 of the cell itself
    torch.testing.assert_close(second[20, 20], torch.tensor(0.5625))
    # outside the root nothing changes, however near
    assert float(maps[1].probability[0, 19, 20]) == 0.0
    assert int(maps[1].relabelled.sum()) == 4


def test_what_stands_in_a_place_without_a_node_counts_for_nothing() -> None:
    dense = dense_labels((28, 56, 112))
    generator = torch.Generator().manual_seed(3)
    selected = [torch.rand(1, grid, grid, generator=generator) < 0.3 for grid in (28, 56, 112)]
    levels = tree(*selected)
    logits = [torch.randn(level.y.shape, generator=generator) for level in levels]
    one, other = (
        corrected_labels(
            dense, levels, [torch.where(v.valid, x, noise) for v, x in zip(levels, logits, strict=True)]
        )
        for noise in (-40.0, 7.0)
    )
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)
    # nor does the order of the places
    mixed = [torch.randperm(level.y.shape[1], generator=generator)[None] for level in levels]
    shuffled = [
        level.take(index, level.valid.gather(1, index)) for level, index in zip(levels, mixed, strict=True)
    ]
    moved = [logit.gather(1, index) for logit, index in zip(logits, mixed, strict=True)]
    for a, b in zip(one, corrected_labels(dense, shuffled, moved), strict=True):
        assert torch.equal(a, b)


def test_the_given_mask_decides_where_the_network_is_of_two_minds() -> None:
    shares = torch.zeros(1, 1, 448, 448)
    shares[..., 224:] = 1.0
    averages, doubtful = area_pyramid(shares, 28), [torch.full((1, 28, 28), 0.2)]
    everywhere = torch.ones(1, 28, 28, dtype=torch.bool)
    plain, trusting = (
        propagate_corrections(averages, doubtful, everywhere, trust)[0].probability for trust in (0.0, 0.3)
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
    averages = area_pyramid(shares, 28)
    against = [torch.linspace(1, -1, 28).expand(1, 28, 28).clone()]
    everywhere = torch.ones(1, 28, 28, dtype=torch.bool)
    before, after = (
        propagate_corrections(averages, against, everywhere, 0.0, deep)[0] for deep in (0.0, 0.15)
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
    root, none = nowhere(2)
    root[0, 10, 10] = True
    levels = tree(root, none)
    logits = [torch.full_like(level.y, 3.0, dtype=torch.float32, requires_grad=True) for level in levels]
    fine = corrected_labels(dense, levels, logits)[1]
    fine.sum().backward()
    # bilinear doubling spreads a cell's value with weights that add up to four
    assert logits[0].grad is not None
    torch.testing.assert_close(logits[0].grad.view(28, 28)[10, 10], torch.tensor(4.0))
    assert int((logits[0].grad != 0).sum()) == 1
    assert not logits[1].grad.any()  # there are no nodes
    assert torch.equal(fine[0, :18] != dense[56][0, :18], torch.zeros(18, 56, dtype=torch.bool))


def test_levels_without_dense_labels_go_on_with_the_finest() -> None:
    averages, dense = area_pyramid(torch.zeros(1, 1, 448, 448), 28), dense_labels((28,))
    levels, everywhere = tree(*nowhere(2)), torch.ones(1, 28, 28, dtype=torch.bool)
    logits = [torch.zeros_like(level.y, dtype=torch.float32) for level in levels]
    maps = propagated(averages, dense, everywhere, levels, logits)
    finer = F.interpolate(dense[28][:, None], scale_factor=2, mode="bilinear")[:, 0]
    torch.testing.assert_close(maps[1].probability, torch.sigmoid(finer))


def test_cells_are_relabelled_where_the_mask_is_contradicted_whatever_the_detector_says() -> None:
    mask = torch.zeros(1, 1, 448, 448)
    mask[..., 100:300, 100:300] = 1.0
    speckled = mask.clone()
    speckled[..., 20, 400] = 1.0  # a single pixel outside
    speckled[..., 201:203, 203:205] = 0.0  # a pinhole inside
    averages, right = area_pyramid(speckled, 28), area_pyramid(mask, 28)
    labels = [12 * right[grid].squeeze(1) - 6 for grid in (28, 56, 112)]

    def refined(margin: float) -> torch.Tensor:
        return propagate_corrections(averages, labels, nowhere(1)[0], margin=margin)[0].relabelled[0]

    anew = refined(0.25)
    assert bool(anew[20 // 16, 400 // 16])
    assert bool(anew[201 // 16, 203 // 16])
    outside = right[28][0, 0] == 0
    assert int(anew[outside].sum()) == 1  # and nowhere else off the object
    assert not refined(1.0).any()
