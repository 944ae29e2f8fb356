"""Targets, node sampling and the loss."""

from __future__ import annotations

from itertools import pairwise

import torch

from transfiner_refine.model.quadtree import children_of
from transfiner_refine.training.objective import SamplingSelector, make_targets


def disc(radius: float, centre: float = 224.0) -> torch.Tensor:
    axis = torch.arange(448) + 0.5 - centre
    return ((axis[:, None] ** 2 + axis**2) < radius**2).float()[None, None]


def test_a_right_mask_is_wrong_nowhere_and_incoherent_along_its_outline() -> None:
    truth = disc(150)
    targets = make_targets(truth, truth, 5)
    assert not targets.wrong.any()
    rows, columns = targets.incoherent[28][0].nonzero(as_tuple=True)
    distance = ((rows * 16 + 8 - 224.0) ** 2 + (columns * 16 + 8 - 224.0) ** 2).sqrt()
    assert bool(((distance - 150).abs() < 32).all())


def test_incoherent_cells_grow_with_the_outline_not_with_the_area() -> None:
    targets = make_targets(disc(150), disc(150), 5)
    counts = [int(targets.incoherent[grid].sum()) for grid in (28, 56, 112, 224, 448)]
    for coarse, fine in pairwise(counts):
        assert fine < 3 * coarse  # an area would grow fourfold


def test_a_shifted_mask_is_wrong_where_the_two_differ() -> None:
    truth, coarse = disc(150), torch.roll(disc(150), 20, 3)
    targets = make_targets(coarse, truth, 3)
    different = (truth != coarse)[0, 0].float()
    cells = torch.nn.functional.avg_pool2d(different[None], 16)[0]
    assert torch.equal(targets.wrong[0], cells > 0.04)


def test_sampling_takes_the_incoherent_cells_first_and_the_same_number_for_everyone() -> None:
    torch.manual_seed(0)
    truth = torch.cat((disc(150), disc(60)))
    coarse = torch.cat((torch.roll(disc(150), 20, 3), disc(60)))
    targets = make_targets(coarse, truth, 5)
    selector = SamplingSelector(targets, (300, 400, 400))
    roots = selector.roots(torch.zeros(2, 28, 28), torch.zeros(2, 28, 28))
    assert torch.bincount(roots.instance).tolist() == [300, 300]
    wanted = targets.incoherent[28]
    chosen = torch.zeros(2, 28, 28, dtype=torch.bool).flatten()
    chosen[roots.cell] = True
    assert bool((chosen.view(2, 28, 28) | ~wanted).all())
    candidates = children_of(roots)
    kept = candidates.take(selector.keep(candidates, torch.zeros(len(candidates))))
    assert torch.bincount(kept.instance).tolist() == [400, 400]
