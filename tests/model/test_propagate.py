"""Propagation from coarse to fine levels."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from transfiner_refine.model.propagate import halvings, propagate
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
