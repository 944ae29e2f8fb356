"""Sampling at nodes against torchvision's dense RoIAlign."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from transfiner_refine.model.pyramid import FeatureMap, roi_align_at_nodes

coordinate = st.floats(-4, 24, allow_nan=False, width=32)


@settings(max_examples=40, deadline=None)
@given(
    x0=coordinate,
    y0=coordinate,
    width=st.floats(0.5, 20, width=32),
    height=st.floats(0.5, 20, width=32),
    grid=st.sampled_from([7, 14, 28, 56]),
    ratio=st.sampled_from([0, 1, 2, 3]),
    seed=st.integers(0, 1000),
)
def test_roi_align_at_a_node_equals_torchvision_at_that_cell(
    x0: float, y0: float, width: float, height: float, grid: int, ratio: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 5, 17, 20, generator=generator)
    box = torch.tensor([x0, y0, x0 + width, y0 + height])
    dense = roi_align(
        maps, [box[None], box[None]], grid, sampling_ratio=ratio, aligned=True
    )  # [2, 5, grid, grid]
    batch = torch.randint(2, (40,), generator=generator)
    y = torch.randint(grid, (40,), generator=generator)
    x = torch.randint(grid, (40,), generator=generator)
    at_nodes = roi_align_at_nodes(FeatureMap.of(maps), batch, box.expand(40, 4), grid, y, x, ratio)
    torch.testing.assert_close(at_nodes, dense[batch, :, y, x], atol=1e-5, rtol=1e-5)


def test_a_node_over_the_whole_map_on_its_own_grid_reads_the_cell_itself() -> None:
    maps = torch.randn(1, 3, 28, 28)
    y, x = torch.tensor([0, 5, 27]), torch.tensor([27, 9, 0])
    batch = torch.zeros(3, dtype=torch.long)
    box = torch.tensor([0.0, 0.0, 28.0, 28.0]).expand(3, 4)
    features = FeatureMap.of(maps)
    sampled = roi_align_at_nodes(features, batch, box, 28, y, x)
    torch.testing.assert_close(sampled, features.at(batch, y, x))


@pytest.mark.parametrize("corner", [(0, 0), (0, 3), (3, 0), (3, 3)])
def test_the_neighbourhood_repeats_cells_at_the_edge(corner: tuple[int, int]) -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    y, x = (torch.tensor([v]) for v in corner)
    padded = torch.nn.functional.pad(maps, (1, 1, 1, 1), mode="replicate")[0, 0]
    expected = padded[corner[0] : corner[0] + 3, corner[1] : corner[1] + 3].flatten()
    assert torch.equal(FeatureMap.of(maps).neighbourhood(torch.tensor([0]), y, x)[0], expected)
