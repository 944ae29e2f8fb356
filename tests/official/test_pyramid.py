"""RoIAlign at single cells against torchvision's dense one, on maps of several sizes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from transfiner_refine.official.pyramid import FeaturePyramid, roi_align_on_levels

coordinate = st.floats(-8, 48, allow_nan=False, width=32)
SCALES = (1.0, 0.5, 0.25)
SIZES = ((17, 20), (9, 10), (5, 5))  # height and width of each map


@settings(max_examples=40)
@given(
    x0=coordinate,
    y0=coordinate,
    width=st.floats(0.5, 40, width=32),
    height=st.floats(0.5, 40, width=32),
    grid=st.sampled_from([7, 14, 28, 56]),
    seed=st.integers(0, 1000),
)
def test_roi_align_at_a_node_equals_torchvision_at_that_cell_whichever_map_it_reads(
    x0: float, y0: float, width: float, height: float, grid: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, 5, *size, generator=generator) for size in SIZES]
    box = torch.tensor([x0, y0, x0 + width, y0 + height])
    dense = torch.stack(
        [
            roi_align(each, [box[None], box[None]], grid, scale, sampling_ratio=0, aligned=True)
            for each, scale in zip(maps, SCALES, strict=True)
        ]
    )  # [3, 2, 5, grid, grid]
    level, batch = (torch.randint(n, (60,), generator=generator) for n in (3, 2))
    y, x = (torch.randint(grid, (60,), generator=generator) for _ in range(2))
    pyramid = FeaturePyramid.of(maps, SCALES)
    at_nodes = roi_align_on_levels(pyramid, level, batch, box.expand(60, 4), grid, y, x)
    torch.testing.assert_close(at_nodes, dense[level, batch, :, y, x], atol=1e-5, rtol=1e-5)


def test_without_nodes_nothing_is_read() -> None:
    pyramid = FeaturePyramid.of([torch.randn(1, 5, *size) for size in SIZES], SCALES)
    none = torch.zeros(0, dtype=torch.int64)
    assert roi_align_on_levels(pyramid, none, none, torch.zeros(0, 4), 28, none, none).shape == (0, 5)
