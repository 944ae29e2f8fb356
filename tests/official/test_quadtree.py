"""The authors' network's quadtree: flat arrays of any length, and propagation through its levels."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfiner_refine.model.propagate import halvings
from transfiner_refine.official.nodes import select_nodes
from transfiner_refine.official.quadtree import QuadtreeLevel, pack, propagate, roots_of


def random_map(seed: int, share: float, batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, 28, 28, generator=torch.Generator().manual_seed(seed)) < share


def levels_of(selected: torch.Tensor) -> list[QuadtreeLevel]:
    """The tree over cells of the 28 level, down to 112."""
    return select_nodes(selected.float())


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_roots_are_exactly_the_selected_cells(seed: int, share: float) -> None:
    selected = random_map(seed, share)
    level = roots_of(selected)
    again = torch.zeros_like(selected).flatten()
    again[level.cell] = True
    assert torch.equal(again.view_as(selected), selected)
    assert bool((level.parent == -1).all())


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_children_tile_their_parents(seed: int, share: float) -> None:
    selected = random_map(seed, share)
    level, children, _ = levels_of(selected)
    covered = torch.zeros(3, 56, 56, dtype=torch.bool).flatten()
    covered[children.cell] = True
    assert len(children) == 4 * len(level) == int(covered.sum())
    assert torch.equal(covered.view(3, 56, 56), selected.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert torch.equal(level.y[children.parent], children.y // 2)
    assert torch.equal(level.x[children.parent], children.x // 2)
    assert torch.equal(level.instance[children.parent], children.instance)


def test_nodes_stay_ordered_by_instance_when_some_are_dropped() -> None:
    children = levels_of(random_map(0, 0.3))[1]
    kept = children.take((torch.rand(len(children)) < 0.5).nonzero().squeeze(1))
    assert bool((kept.instance.diff() >= 0).all())


def test_every_token_gets_a_slot_of_its_own_in_its_own_sequence() -> None:
    instance = torch.tensor([2, 0, 0, 2, 2, 1])
    slot, counts, longest = pack(instance, 4)
    assert longest == 3
    assert counts.tolist() == [2, 1, 3, 0]
    assert torch.equal(slot // longest, instance)
    assert len(set(slot.tolist())) == 6


def test_without_nodes_every_level_is_the_coarse_mask() -> None:
    mask = (torch.rand(2, 1, 448, 448, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    averages, levels = halvings(mask, 28), levels_of(torch.zeros(2, 28, 28, dtype=torch.bool))
    for level, result in zip(levels, propagate(averages, levels, [torch.zeros(0)] * 3), strict=True):
        assert torch.equal(result.probability, averages[level.grid][:, 0])
        assert not result.refined.any()


def test_nodes_get_their_probability_and_their_surroundings_are_upsampled_from_above() -> None:
    averages = halvings(torch.zeros(1, 1, 448, 448), 28)
    selected = torch.zeros(1, 28, 28, dtype=torch.bool)
    selected[0, 10, 10] = True
    roots, children, _ = levels_of(selected)
    one = children.take(torch.tensor([3]))  # bottom right quadrant
    first, second = propagate(averages, [roots, one], [torch.tensor([1.0]), torch.tensor([0.25])])
    assert float(first.probability[0, 10, 10]) == 1.0
    assert float(second.probability[0, 21, 21]) == 0.25
    # the other three quadrants come from the 28 level by bilinear upsampling: 9/16 of the cell itself
    torch.testing.assert_close(second.probability[0, 20, 20], torch.tensor(0.5625))
    # outside the root nothing changes, however near
    assert float(second.probability[0, 19, 20]) == 0.0
    assert int(second.refined.sum()) == 4
