"""benchmarks/widen.py: a wider dense decoder that starts where the narrower one ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.quadtree import BudgetSelector
from transfiner_refine.model.weights import find_weights

WIDEN = Path(__file__).parents[2] / "benchmarks" / "widen.py"


@pytest.mark.slow
def test_a_widened_network_says_what_the_narrow_one_said_and_can_learn(tmp_path: Path) -> None:
    widened = tmp_path / "wide.safetensors"
    command = [sys.executable, str(WIDEN), "lite", str(widened), "--dense-widths", "96", "48", "20"]
    subprocess.run(command, check=True, capture_output=True)
    narrow, wide = load_network(find_weights("lite")).eval(), load_network(widened).eval()
    assert wide.config.dense_widths == (96, 48, 20)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 448, 448, generator=generator) * 255
    coarse = torch.zeros(2, 1, 448, 448)
    coarse[:, :, 100:330, 150:300] = 1
    selector = BudgetSelector(narrow.config)
    with torch.no_grad():
        before, after = (network(image, coarse, selector, 5) for network in (narrow, wide))
    for grid, logit in before.dense.items():
        torch.testing.assert_close(after.dense[grid], logit, atol=1e-3, rtol=1e-3)
    counts = [[int(level.valid.sum()) for level in output.levels] for output in (before, after)]
    assert counts[0] == counts[1]
    assert counts[0][0] > 0
    # the new channels are read with weight zero, but hold something, so the next step moves those weights
    sum(logit.sum() for logit in wide(image, coarse, selector, 5).dense.values()).backward()
    for classify, old in zip(wide.dense.classify, narrow.config.dense_widths, strict=True):
        assert classify.weight.grad[:, old:].abs().sum() > 0
