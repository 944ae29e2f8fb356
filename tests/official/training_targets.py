"""What the release's training compares its predictions with (§9), from polygons and bitmaps of the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

__all__ = [
    "boundary_target",
    "half_size_incoherence",
    "incoherence_target",
    "semantic_target",
    "truth_from_bitmaps",
    "truth_from_polygons",
]

_LEAST_SIDE = 0.1  # of a box, pixels; keeps the scale finite
_CHANGED = 0.01  # a pixel that halving and doubling changes by this much is incoherent
_LEAST_SHARE = 0.05  # of incoherent pixels in an incoherent cell
_CROSS = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])


def truth_from_polygons(
    polygons: Sequence[Sequence[NDArray[np.float64]]], boxes: NDArray[np.float32], grid: int
) -> NDArray[np.bool_]:
    """The truth inside boxes on a grid, rasterised by the COCO API at that size.

    Args:
        polygons: for each box the polygons of its instance, [n, 2] XY each, pixels of the resized image.
        boxes: [N, 4] XYXY, pixels of the resized image.
        grid: cells a side.

    Returns:
        [N, grid, grid], the union of an instance's polygons.
    """
    result = np.zeros((len(boxes), grid, grid), bool)
    for i, (shapes, box) in enumerate(zip(polygons, boxes, strict=True)):
        corner, sides = box[:2], (box[2:] - box[:2]).astype(np.float64)
        scale = grid / np.maximum(sides, _LEAST_SIDE)
        scaled = [((shape - corner) * scale).ravel().tolist() for shape in shapes]
        merged = coco_mask.merge(coco_mask.frPyObjects(scaled, grid, grid))
        result[i] = coco_mask.decode(merged).astype(bool)
    return result


def truth_from_bitmaps(bitmaps: Tensor, boxes: Tensor, grid: int) -> Tensor:
    """The truth inside boxes by RoIAlign of bitmaps, which the release does not train on.

    Args:
        bitmaps: [N, h, w] bool, the instance of each box.
        boxes: [N, 4] XYXY, pixels.
        grid: cells a side.

    Returns:
        [N, grid, grid] bool.
    """
    return _crop(bitmaps.float(), boxes, grid) >= 0.5


def _crop(maps: Tensor, boxes: Tensor, grid: int) -> Tensor:
    rois = torch.cat((torch.arange(len(boxes), device=boxes.device)[:, None].to(boxes.dtype), boxes), 1)
    cropped: Tensor = roi_align(maps[:, None], rois, grid, aligned=True, sampling_ratio=0)
    return cropped[:, 0]


def half_size_incoherence(bitmaps: Tensor) -> Tensor:
    """How much halving and doubling changes each mask: [N, h, w] bool → [N, ⌊h/2⌋, ⌊w/2⌋] in [0, 1]."""
    masks = bitmaps[:, None].float()
    half = (masks.shape[2] // 2, masks.shape[3] // 2)

    def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(x, size, mode="bilinear", align_corners=False)

    there_and_back = resize(resize(masks, half), (masks.shape[2], masks.shape[3]))
    change = resize((masks - there_and_back).abs(), half)[:, 0]
    return torch.where(change >= _CHANGED, 1.0, change)


def incoherence_target(bitmaps: Tensor, boxes: Tensor, grid: int) -> Tensor:
    """Which cells are incoherent: bitmaps [N, h, w], boxes [N, 4] XYXY pixels → [N, grid, grid] bool."""
    return _crop(half_size_incoherence(bitmaps), boxes / 2, grid) >= _LEAST_SHARE


def boundary_target(truth: Tensor) -> Tensor:
    """Cells at the truth's boundary, on either side; the RoI's border is none: [N, grid, grid] bool, twice."""
    kernel = _CROSS.to(truth.device)[None, None]

    def near(mask: Tensor) -> Tensor:
        return F.conv2d(mask[:, None].float(), kernel, padding=1)[:, 0] > 0

    return near(truth) & near(~truth)


def semantic_target(bitmaps: Tensor, height: int, width: int) -> Tensor:
    """The union of an image's sampled instances on the finest feature map: [N, h, w] bool → [height, width] float32.

    The bitmaps have the size of the unpadded image and are stretched over the padded map, as in the release.
    """
    union = bitmaps.any(0)[None, None].float()
    return F.interpolate(union, (height, width), mode="nearest")[0, 0]
