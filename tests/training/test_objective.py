"""Targets, node sampling and the loss."""

from __future__ import annotations

from itertools import pairwise

import torch

from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.network import MaskTransfiner
from transfiner_refine.model.quadtree import children_of
from transfiner_refine.training.objective import (
    RefinementModel,
    SamplingSelector,
    make_targets,
    refinement_loss,
)


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


def test_sampling_takes_marked_cells_first_and_the_same_number_for_everyone() -> None:
    torch.manual_seed(0)
    marked = torch.zeros(2, 28, 28)
    marked[0, 4:20, 5:15] = 0.9
    marked[1, 20, 20] = 0.9
    selector = SamplingSelector((300, 400, 400), RefinerConfig())
    roots = selector.roots(marked, marked)
    assert roots.y.shape == (2, 300)
    assert roots.valid is None  # every place holds a node
    chosen = torch.zeros(2, 28 * 28, dtype=torch.bool).scatter(1, roots.cell, True)
    assert chosen.sum(1).tolist() == [300, 300]
    assert bool((chosen.view(2, 28, 28) | (marked == 0)).all())
    candidates = children_of(roots)
    certain = torch.rand(candidates.y.shape) < 0.1
    index, valid = selector.keep(candidates, certain.float())
    assert valid is None
    kept = torch.zeros_like(certain).scatter(1, index, True)
    assert kept.sum(1).tolist() == [400, 400]
    assert bool((kept | ~certain).all())


def test_the_truth_does_not_choose_the_nodes() -> None:
    """Or they would tell the network where the outline runs."""
    network = MaskTransfiner(RefinerConfig()).eval()
    for judge in (network.detector.classify_root, *network.detector.classify):
        torch.nn.init.zeros_(judge.weight)
        torch.nn.init.constant_(judge.bias, -9.0)  # marks nothing, so that nothing hides what else chooses
    image, coarse = torch.rand(1, 3, 448, 448) * 255, disc(150)
    chosen: list[torch.Tensor] = []
    for truth in (disc(150), disc(60, 300.0)):
        torch.manual_seed(0)
        model = RefinementModel(network, own_share=0.0)
        handle = network.sequence.register_forward_pre_hook(lambda _, given: chosen.append(given[0].detach()))
        model(image, coarse, truth, torch.tensor([900.0]))
        handle.remove()
    assert torch.equal(*chosen)  # the tokens that attend: features and positions of the nodes


def test_every_term_reaches_the_part_it_is_meant_for() -> None:
    torch.manual_seed(0)
    network = MaskTransfiner(RefinerConfig()).eval()
    truth, coarse = disc(150), torch.roll(disc(150), 20, 3)
    targets = make_targets(coarse, truth, 5)
    image = torch.rand(1, 3, 448, 448) * 255
    output = network(image, coarse, SamplingSelector((64, 64, 64, 64, 64), RefinerConfig()), 5)
    terms = refinement_loss(output, targets, torch.tensor([5]))
    assert set(terms) == {"refine", "incoherence", "dense", "mask", "total"}
    nodes, dense = network.decoder.classify.weight, network.dense.classify[0].weight
    detector = network.detector.classify_root.weight
    reached = {
        name: [
            gradient is not None and bool(gradient.abs().sum() > 0)
            for gradient in torch.autograd.grad(
                terms[name], (nodes, dense, detector), retain_graph=True, allow_unused=True
            )
        ]
        for name in ("refine", "incoherence", "dense", "mask")
    }
    assert reached["mask"] == [True, True, True]  # what is judged together is learned together
    assert reached["refine"][0]
    assert reached["incoherence"] == [False, False, True]
    assert reached["dense"] == [False, True, True]
