"""Writing the nodes' labels back, level by level, and pasting (§6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from transfiner_refine.official.nodes import NODE_GRIDS, Nodes

__all__ = ["BLUR", "blur", "clip_boxes", "paste_masks", "write_back"]

_BINOMIAL = (1.0, 6.0, 15.0, 20.0, 15.0, 6.0, 1.0)
#: The demo's 7×7 kernel.
BLUR = torch.outer(torch.tensor(_BINOMIAL), torch.tensor(_BINOMIAL)) / sum(_BINOMIAL) ** 2


def write_back(
    coarse: Tensor,
    boxes: Sequence[Sequence[Nodes]],
    labels: Sequence[Sequence[Tensor]],
    *,
    skip_empty_level: bool,
) -> Tensor:
    """The refined masks on the finest grid.

    The release's propagation: upsample, write, upsample, write. It differs from ``propagate`` of the package in that
    every value on a finer level comes from the level above (corners aligned), never from the coarse mask again.

    Args:
        coarse: [n, 28, 28] probabilities before refining.
        boxes: the nodes of each box on the levels 28, 56 and 112.
        labels: [m] probability of each level's nodes, likewise.
        skip_empty_level: whether a box goes through the 56 level depends on all boxes (True: the step is left
            out if no box has a node there) or on itself alone.

    Returns:
        [n, 112, 112] probabilities.
    """
    has_nodes = [len(middle) > 0 for _, middle, _ in boxes]
    if skip_empty_level:
        has_nodes = [any(has_nodes)] * len(boxes)
    result = coarse.new_zeros(len(coarse), NODE_GRIDS[-1], NODE_GRIDS[-1])
    for i, (nodes, label) in enumerate(zip(boxes, labels, strict=True)):
        mask = coarse[i].clone()
        for level, values in zip(nodes, label, strict=True):
            if level.grid == NODE_GRIDS[1] and not has_nodes[i]:
                continue
            if level.grid != mask.shape[0]:
                mask = _upsample(mask[None], level.grid)[0]
            mask.view(-1)[level.cell] = values
        result[i] = mask
    return result


def _upsample(values: Tensor, grid: int) -> Tensor:
    return F.interpolate(values[:, None], (grid, grid), mode="bilinear", align_corners=True)[:, 0]


def blur(values: Tensor) -> Tensor:
    """The demo's blur of [n, 112, 112] maps; zero padding darkens a map's border."""
    kernel = BLUR.to(values)[None, None]
    return F.conv2d(values[:, None], kernel, padding=kernel.shape[-1] // 2)[:, 0]


def clip_boxes(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Boxes inside the image, and which of them have an area left.

    Args:
        boxes: [N, 4] XYXY, pixels.
        height, width: of the image.

    Returns:
        [N, 4] clipped boxes, [N] bool.
    """
    limit = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    clipped = boxes.clamp(min=0).minimum(limit)
    return clipped, (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])


def paste_masks(probability: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks at the image's size.

    Args:
        probability: [N, grid, grid].
        boxes: [N, 4] XYXY in the image, with an area; the map is stretched over exactly this rectangle.
        height, width: of the image, pixels.

    Returns:
        [N, height, width] bool, probability ≥ 0.5.
    """
    masks = []
    y = torch.arange(height, device=boxes.device) + 0.5
    x = torch.arange(width, device=boxes.device) + 0.5
    for value, (x0, y0, x1, y1) in zip(probability, boxes, strict=True):
        gy, gx = (y - y0) / (y1 - y0) * 2 - 1, (x - x0) / (x1 - x0) * 2 - 1
        where = torch.stack((gx.expand(height, width), gy[:, None].expand(height, width)), 2)
        pasted = F.grid_sample(value[None, None], where[None], align_corners=False)[0, 0]
        masks.append(pasted >= 0.5)
    return torch.stack(masks) if masks else probability.new_zeros((0, height, width), dtype=torch.bool)
