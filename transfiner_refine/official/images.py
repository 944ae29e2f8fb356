"""From images to the network's input: resize, normalise, pad (§2.1-2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from transfiner_refine.official.config import Preparation

__all__ = ["Batch", "network_size", "prepare", "resize"]

_MULTIPLE = 32  # sides of the padded input, so that every stride divides them


@dataclass(frozen=True)
class Batch:
    """Images as the network takes them.

    Attributes:
        input: [B, 3, H, W] float32, blue, green, red; normalised, then padded with zeros right and bottom.
        sizes: (height, width) of each resized image inside it, pixels.
        originals: (height, width) of each image as it was given, pixels.
    """

    input: Tensor
    sizes: list[tuple[int, int]]
    originals: list[tuple[int, int]]

    def to_network(self, image: int) -> Tensor:
        """[4] float32: factors that turn XYXY boxes of an image into boxes of its resized image."""
        (height, width), (original_height, original_width) = self.sizes[image], self.originals[image]
        x, y = width / original_width, height / original_height
        return torch.tensor([x, y, x, y])


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


def resize(image: NDArray[np.uint8], preparation: Preparation) -> NDArray[np.uint8]:
    """An H×W×3 uint8 image at the network's size: Pillow's bilinear, antialiased where it shrinks."""
    height, width = network_size(image.shape[0], image.shape[1], preparation)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def prepare(
    images: Sequence[NDArray[np.uint8]], preparation: Preparation, device: torch.device | None = None
) -> Batch:
    """The network's input from H×W×3 uint8 RGB images."""
    resized = [resize(np.ascontiguousarray(image[:, :, ::-1]), preparation) for image in images]
    sizes = [(image.shape[0], image.shape[1]) for image in resized]
    height, width = (-(-max(axis) // _MULTIPLE) * _MULTIPLE for axis in zip(*sizes, strict=True))
    mean = torch.tensor(preparation.mean, device=device)[:, None, None]
    std = torch.tensor(preparation.std, device=device)[:, None, None]
    padded = []
    for image, (h, w) in zip(resized, sizes, strict=True):
        pixels = torch.tensor(image, device=device).permute(2, 0, 1).float()  # [3, h, w]
        padded.append(F.pad((pixels - mean) / std, (0, width - w, 0, height - h)))
    return Batch(torch.stack(padded), sizes, [(image.shape[0], image.shape[1]) for image in images])
