"""The authors' quadtree: which cells are nodes, what they read, and propagation through the levels."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from faithful import dilated
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_align

from transfiner_refine.model.propagate import area_pyramid
from transfiner_refine.official.features import ImageFeatures, box_level
from transfiner_refine.official.nodes import Nodes, propagate, select_nodes


def random_map(seed: int, share: float) -> Tensor:
    return torch.rand(28, 28, generator=torch.Generator().manual_seed(seed)) < share


def levels_of(selected: Tensor) -> list[Nodes]:
    """The tree over cells of the 28 level, down to 112."""
    return select_nodes(selected.float())


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_roots_are_exactly_the_selected_cells(seed: int, share: float) -> None:
    selected = random_map(seed, share)
    roots = levels_of(selected)[0]
    again = torch.zeros_like(selected)
    again[roots.y, roots.x] = True
    assert torch.equal(again, selected)
    assert bool((roots.parent == -1).all())


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_children_tile_their_parents(seed: int, share: float) -> None:
    selected = random_map(seed, share)
    roots, children, _ = levels_of(selected)
    covered = torch.zeros(56, 56, dtype=torch.bool)
    covered[children.y, children.x] = True
    assert len(children) == 4 * len(roots) == int(covered.sum())
    assert torch.equal(covered, selected.repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert torch.equal(roots.y[children.parent], children.y // 2)
    assert torch.equal(roots.x[children.parent], children.x // 2)


def test_nodes_of_finer_levels_lie_under_their_parents() -> None:
    incoherence = torch.rand(28, 28)
    levels = select_nodes(incoherence)
    assert [len(level) for level in levels] == [
        int((incoherence >= t).sum()) * f for t, f in ((1e-6, 1), (0.125, 4), (0.8, 16))
    ]
    for above, level in pairwise(levels):
        assert torch.equal(above.y[level.parent], level.y // 2)
        assert torch.equal(above.x[level.parent], level.x // 2)
    assert [len(level) for level in select_nodes(torch.zeros(28, 28))] == [0, 0, 0]


def test_the_demo_adds_the_neighbours_of_the_finest_nodes() -> None:
    incoherence = torch.zeros(28, 28)
    incoherence[0, 5] = 0.9
    levels = select_nodes(incoherence)
    assert len(levels[-1]) == 4 * 4
    assert len(dilated(levels)[-1]) == 5 * 6  # the RoI's edge cuts one row


def test_cells_of_disagreement_are_nodes_on_every_level() -> None:
    always = torch.zeros(28, 28, dtype=torch.bool)
    always[3, 4] = True
    levels = select_nodes(torch.zeros(28, 28), always)
    assert [len(level) for level in levels] == [1, 4, 16]


def averages(mask: Tensor) -> dict[int, Tensor]:
    return {grid: each[0, 0] for grid, each in area_pyramid(mask, 28).items()}


def test_without_nodes_every_level_is_the_coarse_mask() -> None:
    mask = torch.rand(1, 1, 448, 448, generator=torch.Generator().manual_seed(0)) < 0.5
    coarse, levels = averages(mask.float()), levels_of(torch.zeros(28, 28, dtype=torch.bool))
    results = propagate(coarse, levels, [torch.zeros(0)] * 3)
    for level, (probability, refined) in zip(levels, results, strict=True):
        assert torch.equal(probability, coarse[level.grid])
        assert not refined.any()


def test_nodes_get_their_probability_and_their_surroundings_are_upsampled_from_above() -> None:
    selected = torch.zeros(28, 28, dtype=torch.bool)
    selected[10, 10] = True
    roots, children, _ = levels_of(selected)
    one = Nodes(56, children.cell[3:], children.parent[3:])  # bottom right quadrant
    labels = [torch.tensor([1.0]), torch.tensor([0.25])]
    (first, _), (second, refined) = propagate(averages(torch.zeros(1, 1, 448, 448)), [roots, one], labels)
    assert float(first[10, 10]) == 1.0
    assert float(second[21, 21]) == 0.25
    # the other three quadrants come from the 28 level by bilinear upsampling: 9/16 of the cell itself
    torch.testing.assert_close(second[20, 20], torch.tensor(0.5625))
    # outside the root nothing changes, however near
    assert float(second[19, 20]) == 0.0
    assert int(refined.sum()) == 4


def test_larger_boxes_read_coarser_levels() -> None:
    sides = torch.tensor([20.0, 111.9, 112.1, 223.0, 225.0, 447.0, 449.0, 2000.0])
    boxes = torch.stack((torch.zeros(8), torch.zeros(8), sides, sides), 1)
    assert [box_level(corners) for corners in boxes] == [2, 2, 3, 3, 4, 4, 5, 5]


def pyramid(seed: int, channels: int = 6) -> ImageFeatures:
    """p2 … p5 of an image of 256 × 320 pixels."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(1, channels, 256 // s, 320 // s, generator=generator) for s in (4, 8, 16, 32)]
    semantic = torch.randn(1, channels, 64, 80, generator=generator)
    return ImageFeatures(
        maps, semantic, [each[0].permute(1, 2, 0) for each in (maps[0] + semantic, *maps[1:])]
    )


BOXES = (
    (10.0, 12.0, 60.0, 50.0),
    (-30.0, 20.0, 150.0, 130.0),
    (5.0, 5.0, 250.0, 255.0),
    (0.0, 0.0, 620.0, 500.0),
    (100.0, 30.0, 104.0, 250.0),  # long and thin: many samples on one axis
    (50.0, 60.0, 51.0, 61.0),
    (400.0, 400.0, 500.0, 480.0),  # wholly outside
)
corner = st.floats(-100, 400, width=32)
side = st.floats(0.5, 500, width=32)
box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


def check_features(corners: tuple[float, ...], grid: int, seed: int) -> None:
    """The nodes' features are those of torchvision's RoIAlign of the whole grid, on the map that the box reads."""
    image, corners_ = pyramid(seed), torch.tensor(corners)
    level = box_level(corners_)
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(grid * grid, generator=generator)[:60].sort().values
    nodes = Nodes(grid, cells, cells)
    finer = max(level - 1 - (28, 56, 112).index(grid), 2)
    source = image.maps[0] + image.semantic if finer == 2 else image.maps[finer - 2]
    dense = roi_align(source, [corners_[None]], grid, 0.5**finer, 0, aligned=True)[0]
    ours = image.at(corners_, nodes)
    torch.testing.assert_close(ours, dense[:, nodes.y, nodes.x].T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [28, 56, 112])
@pytest.mark.parametrize("corners", BOXES)
def test_features_of_nodes_are_those_of_dense_pooling(corners: tuple[float, ...], grid: int) -> None:
    check_features(corners, grid, grid)


@settings(max_examples=60, deadline=None)
@given(corners=box, grid=st.sampled_from([28, 56, 112]), seed=st.integers(0, 1000))
def test_features_of_nodes_are_those_of_dense_pooling_in_any_box(
    corners: tuple[float, ...], grid: int, seed: int
) -> None:
    check_features(corners, grid, seed)


def test_without_nodes_nothing_is_read() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    image = pyramid(0)
    assert image.at(torch.tensor(BOXES[0]), Nodes(28, none, none)).shape == (0, 6)


def test_context_features_are_those_of_dense_pooling_without_the_residual() -> None:
    image, boxes = pyramid(1), torch.tensor(BOXES)
    for corners in boxes:
        level = box_level(corners)
        theirs = roi_align(image.maps[level - 2], [corners[None]], 14, 0.5**level, 0, aligned=True)[0]
        torch.testing.assert_close(image.pooled(corners), theirs[None], atol=1e-5, rtol=1e-5)
