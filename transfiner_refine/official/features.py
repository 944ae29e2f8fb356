"""From images to what boxes and quadtree nodes read of their features (§2, §3), and the tokens of a box (§5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from transfiner_refine.official.architecture import Architecture
from transfiner_refine.official.nodes import NODE_GRIDS, Nodes

#: Grid of the context tokens, and of the features that the coarse and the incoherence head read.
CONTEXT_GRID = 14
_FINEST, _COARSEST = 2, 5  # p2 … p5
_CANONICAL_LEVEL, _CANONICAL_SIDE = 4, 224  # a box of 224 pixels reads p4 (Lin et al. 2017)
_CAFFE = ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
_TORCH = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_MULTIPLE = 32  # sides of the padded input, so that every stride divides them
_TEMPERATURE = 10000.0


@dataclass(frozen=True)
class Preparation:
    """How an image becomes the network's input (§2)."""

    short_side: int = 800  # the shorter side is resized to this, pixels,
    max_side: int = 1333  # unless the longer one passes this; then it becomes this
    mean: tuple[float, float, float] = _CAFFE[0]  # of blue, green, red
    std: tuple[float, float, float] = _CAFFE[1]

    @classmethod
    def of(cls, architecture: Architecture) -> Preparation:
        """The release's settings for a backbone.

        A Swin's mean and std are those of red, green, blue, but its images come as blue, green, red: the
        configuration file repeats a section, and the colour order falls back to its default.
        """
        mean, std = _TORCH if architecture.backbone == "swin" else _CAFFE
        return cls(mean=mean, std=std)


def network_size(height: int, width: int, preparation: Preparation) -> tuple[int, int]:
    """(height, width) to which an image of ``height`` × ``width`` pixels is resized."""
    scale = preparation.short_side / min(height, width)
    new_height, new_width = scale * height, scale * width
    if height < width:  # the short side is exact, whatever the multiplication rounds to
        new_height = float(preparation.short_side)
    else:
        new_width = float(preparation.short_side)
    if max(new_height, new_width) > preparation.max_side:
        shrink = preparation.max_side / max(new_height, new_width)
        new_height, new_width = new_height * shrink, new_width * shrink
    return int(new_height + 0.5), int(new_width + 0.5)


def prepare(
    image: NDArray[np.uint8], preparation: Preparation, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """The network's input from an H×W×3 uint8 RGB image, and the [4] factors of XYXY boxes that resizing asks for.

    The input is [1, 3, H', W'] float32: blue, green, red; normalised, then padded with zeros to multiples of 32.
    """
    height, width = network_size(image.shape[0], image.shape[1], preparation)
    bgr = Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))
    resized = np.array(bgr.resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(resized).to(device).permute(2, 0, 1).float()  # [3, height, width]
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (preparation.mean, preparation.std))
    padded = F.pad((pixels - mean) / std, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE))
    scale = [width / image.shape[1], height / image.shape[0]] * 2
    return padded[None], torch.tensor(scale, device=device)


def box_level(box: Tensor) -> int:
    """The pyramid level k of a box, [4] XYXY pixels: 2 … 5."""
    side = ((box[2] - box[0]) * (box[3] - box[1])).sqrt()
    level = (_CANONICAL_LEVEL + torch.log2(side / _CANONICAL_SIDE + 1e-8)).floor()
    return int(level.clamp(_FINEST, _COARSEST))


@dataclass(frozen=True)
class ImageFeatures:
    """What one image gives its boxes to read; boxes are XYXY float32, pixels of the resized image."""

    maps: list[Tensor]  # p2 … p5, [1, C, H/4, W/4] to [1, C, H/32, W/32]
    semantic: Tensor  # S(p2), [1, C, H/4, W/4]
    tables: list[Tensor]  # p2 + S(p2), p3, p4, p5 with channels last, [H, W, C] each; nodes read these

    def pooled(self, box: Tensor, grid: int = CONTEXT_GRID) -> Tensor:
        """RoIAlign of a box [4] from its level: [1, C, grid, grid]; with the context grid that is x14."""
        level = box_level(box)
        source = self.maps[level - _FINEST]
        pooled: Tensor = roi_align(source, [box[None].to(source.dtype)], grid, 0.5**level, 0, aligned=True)
        return pooled

    def at(self, box: Tensor, nodes: Nodes) -> Tensor:
        """Features of a box's nodes, each level of the tree one step finer than the one before: [n, C]."""
        level = max(box_level(box) - 1 - NODE_GRIDS.index(nodes.grid), _FINEST)
        return _roi_align_at(self.tables[level - _FINEST], box / 2**level, nodes)


def _roi_align_at(table: Tensor, box: Tensor, nodes: Nodes) -> Tensor:
    """RoIAlign (aligned, sampling ratio 0, as in torchvision and detectron2) at single cells of a box's grid.

    One weighted sum of table rows a node: as many samples a side as a cell has feature cells, four taps a sample.
    ``table`` is [H, W, C], ``box`` [4] XYXY in its cells.
    """
    # sides are differences of shifted corners because RoIAlign rounds them so, and the ceiling is not continuous
    start, end = box[:2] - 0.5, box[2:] - 0.5  # (x, y)
    cell = (end - start) / nodes.grid
    columns, rows = (max(int(count), 0) for count in cell.ceil().tolist())
    height, width, _ = table.shape
    if len(nodes) == 0 or rows * columns == 0:
        return table.new_zeros(len(nodes), table.shape[2])

    def taps(axis: int, index: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
        """Places on one axis of the two taps of each sample, and their weights: [n, count, 2] each."""
        step = torch.arange(count, device=index.device) + 0.5
        position = (start[axis] + index * cell[axis])[:, None] + step * (cell[axis] / count)
        inside = (position >= -1) & (position <= size)  # further out a sample counts as zero
        position = position.clamp(0, size - 1)
        low = position.floor()
        part = position - low
        weight = torch.stack((1 - part, part), 2) * inside[:, :, None]
        return torch.stack((low, (low + 1).clamp(max=size - 1)), 2).long(), weight

    (y, y_weight), (x, x_weight) = taps(1, nodes.y, rows, height), taps(0, nodes.x, columns, width)
    index = (y * width).flatten(1)[:, :, None] + x.flatten(1)[:, None]  # [n, 2 · rows, 2 · columns]
    weight = y_weight.flatten(1)[:, :, None] * x_weight.flatten(1)[:, None] / (rows * columns)
    weights = weight.flatten(1).to(table.dtype)
    return F.embedding_bag(index.flatten(1), table.flatten(0, 1), mode="sum", per_sample_weights=weights)


def axis_embedding(grid: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sine embedding of the cells on one axis (Carion et al. 2020): [grid, width]."""
    e = torch.arange(1, grid + 1, dtype=torch.float32, device=device) / (grid + 1e-6) * (2 * math.pi)
    j = torch.arange(width, dtype=torch.float32, device=device)
    angle = e[:, None] / _TEMPERATURE ** (2 * torch.div(j, 2, rounding_mode="floor") / width)
    return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), 2).flatten(1)


def tokens_of(
    image: ImageFeatures, box: Tensor, context: Tensor, coarse: Tensor, levels: Sequence[Nodes]
) -> tuple[Tensor, Tensor]:
    """The tokens of one box [4] XYXY: 196 context tokens, then its nodes level by level.

    ``context`` [C, 14, 14] is what the box pools of the image, ``coarse`` [28, 28] its mask before refining. Returns
    features and the coarse mask's value [t, C + 1], and the sine embedding of the cells [t, C].
    """
    width, grid, _ = context.shape
    every = torch.arange(grid * grid, device=context.device)
    values, positions = [], []
    for level in (Nodes(grid, every, every), *levels):
        resized = F.interpolate(coarse[None, None], (level.grid, level.grid), mode="bilinear")
        values.append(resized.flatten()[level.cell])
        axis = axis_embedding(level.grid, width // 2, context.device)
        positions.append(torch.cat((axis[level.y], axis[level.x]), 1))
    features = torch.cat([context.flatten(1).T, *(image.at(box, level) for level in levels)])
    coarse_values = torch.cat(values)[:, None].to(features.dtype)
    return torch.cat((features, coarse_values), 1), torch.cat(positions)
