"""The quadtree as arrays: what holds for every tree."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfiner_refine.model.quadtree import ThresholdSelector, children_of, roots_of


def random_map(seed: int, share: float, batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, 28, 28, generator=torch.Generator().manual_seed(seed)) < share


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_roots_are_exactly_the_selected_cells(seed: int, share: float) -> None:
    selected = random_map(seed, share)
    level = roots_of(selected)
    again = torch.zeros_like(selected).flatten()
    again[level.cell] = True
    assert torch.equal(again.view_as(selected), selected)
    assert bool((level.parent == -1).all())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_children_tile_their_parents(seed: int, share: float) -> None:
    selected = random_map(seed, share)
    level = roots_of(selected)
    children = children_of(level)
    covered = torch.zeros(3, 56, 56, dtype=torch.bool).flatten()
    covered[children.cell] = True
    assert len(children) == 4 * len(level) == int(covered.sum())
    assert torch.equal(covered.view(3, 56, 56), selected.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert torch.equal(level.y[children.parent], children.y // 2)
    assert torch.equal(level.x[children.parent], children.x // 2)
    assert torch.equal(level.instance[children.parent], children.instance)


def test_nodes_stay_ordered_by_instance_when_some_are_dropped() -> None:
    children = children_of(roots_of(random_map(0, 0.3)))
    kept = children.take((torch.rand(len(children)) < 0.5).nonzero().squeeze(1))
    assert bool((kept.instance.diff() >= 0).all())


def test_an_instance_stops_at_its_own_depth() -> None:
    selector = ThresholdSelector(torch.tensor([3, 5]), 0.5, 0.5, 0.5, 28)
    level = selector.roots(torch.ones(2, 28, 28), torch.ones(2, 28, 28))
    sizes = []
    for _ in range(4):
        candidates = children_of(level)
        level = candidates.take(selector.keep(candidates, torch.ones(len(candidates))))
        sizes.append(torch.bincount(level.instance, minlength=2).tolist())
    assert sizes == [[56**2, 56**2], [112**2, 112**2], [0, 224**2], [0, 448**2]]
