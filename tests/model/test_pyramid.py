"""Reading at nodes: sampling against torchvision's dense RoIAlign, and the cells around a node."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from transfiner_refine.model.pyramid import FeatureMap, first_rows
from transfiner_refine.model.quadtree import QuadtreeNodes, root_cells


@settings(max_examples=40)
@given(grid=st.integers(2, 60), seed=st.integers(0, 1000))
def test_a_sample_at_a_node_equals_torchvisions_roi_align_of_the_whole_map_at_that_cell(
    grid: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 5, grid, grid, generator=generator)
    finer = 2 * grid
    whole = torch.tensor([[0.0, 0.0, grid, grid]])
    dense = roi_align(maps, [whole, whole], finer, sampling_ratio=1, aligned=True)  # [2, 5, finer, finer]
    y, x = (torch.randint(finer, (2, 40), generator=generator) for _ in range(2))
    y[:, 0] = x[:, 1] = 0
    y[:, 2] = x[:, 3] = finer - 1
    sampled = FeatureMap.of(maps).sample(y, x)
    assert sampled.shape == (2, 40, 5)
    for i in range(2):
        torch.testing.assert_close(sampled[i], dense[i][:, y[i], x[i]].T, atol=1e-5, rtol=1e-5)


def test_reading_the_maps_own_cells_is_roi_align_on_its_own_grid() -> None:
    maps = torch.randn(2, 3, 28, 28)
    cells = root_cells(28, maps).cell
    read = FeatureMap.of(maps).read(cells + first_rows(cells, 28))
    whole = torch.tensor([[0.0, 0.0, 28.0, 28.0]])
    dense = roi_align(maps, [whole, whole], 28, sampling_ratio=1, aligned=True)
    torch.testing.assert_close(read, dense.flatten(2).transpose(1, 2))


def test_every_instance_reads_its_own_map() -> None:
    maps = torch.randn(3, 4, 7, 7)
    y, x = (torch.randint(7, (3, 6), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    read = FeatureMap.of(maps).read(y * 7 + x + first_rows(y, 7))
    assert read.shape == (3, 6, 4)
    for i in range(3):
        assert torch.equal(read[i], maps[i][:, y[i], x[i]].T)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_neighbourhood_repeats_cells_at_the_edge(channels_last: bool) -> None:
    maps = torch.randn(2, 3, 4, 4)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    cells = root_cells(4, maps)
    around = FeatureMap.of(maps).read(cells.around())
    assert around.shape == (2, 16, 9, 3)
    padded = torch.nn.functional.pad(maps, (1, 1, 1, 1), mode="replicate")
    patches = padded.unfold(2, 3, 1).unfold(3, 3, 1)  # [2, 3, 4, 4, 3, 3]
    assert torch.equal(around, patches.flatten(4).permute(0, 2, 3, 4, 1).flatten(1, 2))


def test_in_the_middle_of_the_neighbourhood_lies_the_node() -> None:
    y, x = torch.tensor([[0, 5, 27], [3, 0, 9]]), torch.tensor([[27, 9, 0], [2, 0, 9]])
    nodes = QuadtreeNodes(28, y, x, torch.full_like(y, -1))
    assert torch.equal(nodes.around()[:, :, 4], nodes.cell + first_rows(y, 28))
