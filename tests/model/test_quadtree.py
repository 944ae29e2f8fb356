"""The quadtree as arrays of fixed size: what holds for every tree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.network import MaskTransfiner, TreeOutput
from transfiner_refine.model.quadtree import BudgetSelector, QuadtreeNodes, children_of, root_cells
from transfiner_refine.model.weights import find_weights

CONFIG = RefinerConfig(relabel_threshold=0.2, root_threshold=0.3, child_threshold=0.5)
ALL_CELLS = tuple((28 << level) ** 2 for level in range(5))


def random_maps(seed: int, batch: int = 3, grid: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    """What the detector says: [batch, grid, grid] probabilities of ``wrong`` and of ``incoherent``."""
    generator = torch.Generator().manual_seed(seed)
    wrong, incoherent = (torch.rand(batch, grid, grid, generator=generator) for _ in range(2))
    return wrong, incoherent


def marked(nodes: QuadtreeNodes) -> torch.Tensor:
    """[B, grid, grid] bool, the cells that are nodes; checks that no place holds a cell twice."""
    cells = torch.zeros(len(nodes.y), nodes.grid**2, dtype=torch.bool)
    for row, cell, valid in zip(cells, nodes.cell, valid_of(nodes), strict=True):
        assert cell.unique().numel() == cell.numel()
        row[cell[valid]] = True
    return cells.view(-1, nodes.grid, nodes.grid)


def valid_of(nodes: QuadtreeNodes) -> torch.Tensor:
    return torch.ones_like(nodes.y, dtype=torch.bool) if nodes.valid is None else nodes.valid


def over_threshold(wrong: torch.Tensor, incoherent: torch.Tensor) -> torch.Tensor:
    return (wrong >= CONFIG.relabel_threshold) & (incoherent >= CONFIG.root_threshold)


@settings(max_examples=25)
@given(grid=st.sampled_from([1, 7, 28]), batch=st.integers(1, 4))
def test_root_cells_are_all_cells_row_by_row(grid: int, batch: int) -> None:
    cells = root_cells(grid, torch.zeros(batch, 1))
    assert torch.equal(cells.cell, torch.arange(grid * grid).expand(batch, -1))
    assert bool((cells.parent == -1).all())
    assert cells.valid is None


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), shift=st.floats(-1, 1))
def test_roots_are_exactly_the_cells_over_the_threshold_when_the_budget_suffices(
    seed: int, shift: float
) -> None:
    wrong, incoherent = random_maps(seed)
    incoherent = (incoherent + shift).clamp(0, 1)
    roots = BudgetSelector(replace(CONFIG, node_budget=ALL_CELLS)).roots(wrong, incoherent)
    assert roots.grid == 28
    assert torch.equal(marked(roots), over_threshold(wrong, incoherent))
    assert bool((roots.parent == -1).all())


def test_a_threshold_of_zero_takes_every_cell_that_may_be_wrong_and_no_other() -> None:
    wrong, incoherent = random_maps(0)
    incoherent[:, :5] = 0
    roots = BudgetSelector(replace(CONFIG, root_threshold=0.0, node_budget=ALL_CELLS)).roots(
        wrong, incoherent
    )
    assert torch.equal(marked(roots), wrong >= CONFIG.relabel_threshold)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), budget=st.integers(1, 784))
def test_of_more_cells_than_the_budget_exactly_the_most_probable_become_roots(seed: int, budget: int) -> None:
    wrong, incoherent = random_maps(seed)
    roots = BudgetSelector(replace(CONFIG, node_budget=(budget,))).roots(wrong, incoherent)
    assert roots.y.shape == (3, budget)
    chosen, candidates = marked(roots), over_threshold(wrong, incoherent)
    for i in range(3):
        number = min(budget, int(candidates[i].sum()))
        assert int(chosen[i].sum()) == number
        best = incoherent[i][candidates[i]].sort(descending=True).values[:number]
        assert torch.equal(incoherent[i][chosen[i]].sort(descending=True).values, best)
        assert not (chosen[i] & ~candidates[i]).any()


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), roots=st.integers(1, 200), budget=st.integers(1, 900))
def test_of_more_children_than_the_budget_exactly_the_most_probable_stay(
    seed: int, roots: int, budget: int
) -> None:
    selector = BudgetSelector(replace(CONFIG, node_budget=(roots, budget)))
    candidates = children_of(selector.roots(*random_maps(seed)))
    probability = torch.rand(candidates.y.shape, generator=torch.Generator().manual_seed(seed))
    index, valid = selector.keep(candidates, probability)
    assert valid is not None
    assert index.shape == valid.shape == (3, min(budget, 4 * roots))
    exists = valid_of(candidates)
    for i in range(3):
        over = probability[i][exists[i] & (probability[i] >= CONFIG.child_threshold)]
        kept = index[i][valid[i]]
        assert bool(exists[i][kept].all())
        assert torch.equal(probability[i][kept], over.sort(descending=True).values[: index.shape[1]])


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), budget=st.integers(1, 784))
def test_children_tile_their_parents(seed: int, budget: int) -> None:
    level = BudgetSelector(replace(CONFIG, node_budget=(budget,))).roots(*random_maps(seed))
    children = children_of(level)
    assert children.grid == 56
    assert children.y.shape == (3, 4 * budget)
    covered = marked(children)
    assert torch.equal(covered, marked(level).repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert torch.equal(level.y.gather(1, children.parent), children.y // 2)
    assert torch.equal(level.x.gather(1, children.parent), children.x // 2)
    assert torch.equal(valid_of(level).gather(1, children.parent), valid_of(children))


def test_quadrants_of_a_node_lie_in_a_row_from_the_top_left_to_the_bottom_right() -> None:
    one = QuadtreeNodes(28, *(torch.tensor([[v]]) for v in (5, 9, -1)))
    children = children_of(one)
    assert children.y.tolist() == [[10, 10, 11, 11]]
    assert children.x.tolist() == [[18, 19, 18, 19]]
    assert children.valid is None  # all exist


def test_an_instance_has_the_same_nodes_alone_and_in_a_batch() -> None:
    selector = BudgetSelector(replace(CONFIG, node_budget=(50, 70)))
    wrong, incoherent = random_maps(4)
    together = selector.roots(wrong, incoherent)
    for i in range(3):
        alone = selector.roots(wrong[i : i + 1], incoherent[i : i + 1])
        assert torch.equal(marked(alone)[0], marked(together)[i])


@pytest.fixture(scope="module")
def network() -> MaskTransfiner:
    return load_network(find_weights("lite"))


@pytest.fixture(scope="module")
def given_input() -> tuple[torch.Tensor, torch.Tensor]:
    """Two RoIs of 448 pixels: noise around discs, and masks of these that are moved and cut."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.arange(448.0)
    pixels, masks = [], []
    for radius, shift in ((120, 12), (70, 25)):
        disc = (axis[:, None] - 224) ** 2 + (axis - 224) ** 2 < radius**2
        noise = torch.randn(3, 448, 448, generator=generator) * 12
        pixels.append((noise + torch.where(disc, 190.0, 70.0)).clamp(0, 255))
        masks.append(torch.roll(disc, shift, 1)[None].float())
    return torch.stack(pixels), torch.stack(masks)


@torch.no_grad()
def run(
    network: MaskTransfiner, image: torch.Tensor, coarse: torch.Tensor, budget: tuple[int, ...]
) -> tuple[TreeOutput, torch.Tensor]:
    """A pass, and the probability on its finest level."""
    config = replace(network.config, node_budget=budget)
    output = network(image, coarse, BudgetSelector(config), 5)
    return output, network.maps(output, coarse, config)[-1].probability


def test_a_tree_goes_as_deep_as_it_is_told_for_every_instance(
    network: MaskTransfiner, given_input: tuple[torch.Tensor, torch.Tensor]
) -> None:
    image, coarse = (part[:1] for part in given_input)
    selector = BudgetSelector(network.config)
    for depth in (3, 4, 5):
        with torch.no_grad():
            output = network(image, coarse, selector, depth)
        assert [level.grid for level in output.levels] == [28 << level for level in range(depth)]


def test_places_without_a_node_change_nothing(
    network: MaskTransfiner, given_input: tuple[torch.Tensor, torch.Tensor]
) -> None:
    ample, probability = run(network, *given_input, (400, 500, 700, 900, 1300))
    needed = tuple(int(valid_of(level).sum(1).max()) for level in ample.levels)
    assert all(count > 0 for count in needed)
    assert all(count < level.y.shape[1] for count, level in zip(needed, ample.levels, strict=True))
    exact, same = run(network, *given_input, needed)
    twice, again = run(network, *given_input, tuple(2 * count for count in needed))
    for level, other, ample_level in zip(exact.levels, twice.levels, ample.levels, strict=True):
        assert torch.equal(marked(level), marked(other))
        assert torch.equal(marked(level), marked(ample_level))
    torch.testing.assert_close(again, same, atol=1e-5, rtol=0)
    torch.testing.assert_close(probability, same, atol=1e-5, rtol=0)


def test_a_budget_that_is_too_small_loses_nodes_and_nothing_else(
    network: MaskTransfiner, given_input: tuple[torch.Tensor, torch.Tensor]
) -> None:
    budget = (20, 30, 40, 50, 60)
    output, probability = run(network, *given_input, budget)
    assert [level.y.shape[1] for level in output.levels] == list(budget)
    assert bool(valid_of(output.levels[0]).all())  # there are more candidates than places
    roots = output.roots
    wrong, incoherent = roots.wrong_probability()[0], roots.incoherent_probability()[0]
    score = torch.where(wrong >= network.config.relabel_threshold, incoherent, 0.0).flatten()
    taken = score[output.levels[0].cell[0]]
    assert torch.equal(taken.sort(descending=True).values, score.sort(descending=True).values[:20])
    assert bool(probability.isfinite().all())
    assert float(probability.min()) >= 0
    assert float(probability.max()) <= 1
