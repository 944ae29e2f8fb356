"""The refine step: what it yields for a batch of RoIs; ``tests/refine/test_export.py`` has it as a program."""

from __future__ import annotations

import torch

from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.network import RefineStep
from transfiner_refine.model.weights import find_weights


@torch.no_grad()
def test_a_step_yields_the_nodes_it_was_made_of() -> None:
    network = load_network(find_weights("lite"))
    side = network.config.crop_side
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(60, 90, (2, 3, side, side), generator=generator, dtype=torch.uint8)
    pixels[:, :, 60:160, 50:170] += 120
    coarse = torch.zeros(2, 1, side, side)
    coarse[0, :, 66:168, 56:180] = 1
    output = RefineStep(network, 3, nodes=True)(pixels, coarse)
    dense = RefineStep(network, 3, nodes=False)(pixels, coarse)
    assert 0 <= float(output.probability.min()) <= float(output.probability.max()) <= 1
    assert output.probability.dtype == torch.float32
    assert output.relabelled[0].any()
    nodes = output.cells.split(network.config.node_budget[:3], 1)
    exist = output.valid.split(network.config.node_budget[:3], 1)
    for level, (cells, valid) in enumerate(zip(nodes, exist, strict=True)):
        assert 0 < int(valid[0].sum()) <= network.config.node_budget[level]
        assert int(cells.max()) < (28 << level) ** 2
    roots = nodes[0][0][exist[0][0]]
    assert bool(output.relabelled[0].flatten()[roots].all())  # a root's cell is relabelled
    # nodes decide where labels are, not which cells have new ones, but for those that new labels contradict
    assert not torch.equal(output.probability, dense.probability)
    kept = ~output.relabelled.repeat_interleave(4, 1).repeat_interleave(4, 2)
    given = torch.nn.functional.avg_pool2d(coarse, 2)[:, 0]
    assert torch.equal(output.probability[kept], given[kept])
