"""The yardstick: a plain U-Net refiner with the same backbone, trained by the same loop on the same samples.

    python benchmarks/unet.py train --dataset DIR:WEIGHT … --output RUN --cpu-minutes N
    python benchmarks/unet.py evaluate --weights RUN/refiner.safetensors --data DEVVAL

It sees a 224 px crop of the coarse box × 1.25 with the mask as fourth channel and predicts the whole crop at
stride 2 through a 64-channel decoder. If the quadtree does not beat it, the quadtree is not worth its code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from transfiner_refine.model.backbone import EfficientNetLite, load_imagenet
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.propagate import halvings
from transfiner_refine.model.roi import crop_roi, read_mask, resample, roi_around
from transfiner_refine.refiner import window_of
from transfiner_refine.training.trainee import split_decay

CONFIG = RefinerConfig(roi_max_aspect=1000.0)  # the plain box
_WIDTH = 64


class UNet(nn.Module):
    """Encoder: EfficientNet-lite0 with the mask in its stem; decoder: one 3×3 convolution a scale, to stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite()
        channels = self.backbone.channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, _WIDTH, 1) for c in channels)
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1), nn.GroupNorm(8, _WIDTH), nn.ReLU())
            for _ in channels
        )
        self.classify = nn.Conv2d(_WIDTH, 1, 1)

    def forward(self, image: Tensor, coarse: Tensor) -> Tensor:
        """image [B, 3, 224, 224] in [0, 255], coarse [B, 1, 224, 224] → logits [B, 1, 112, 112]."""
        maps = self.backbone(image, coarse)
        x: Tensor | None = None
        for lateral, smooth, features in zip(
            reversed(self.lateral), reversed(self.smooth), reversed(maps), strict=True
        ):
            y = lateral(features)
            x = smooth(y if x is None else y + F.interpolate(x, scale_factor=2, mode="nearest"))
        logits: Tensor = self.classify(x)
        return logits


class UNetTrainee:
    """The U-Net as the training loop sees it; BCE + dice."""

    def __init__(self, network: UNet) -> None:
        self.network = network

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        rest = nn.ModuleDict({n: m for n, m in self.network.named_children() if n != "backbone"})
        return [*split_decay(self.network.backbone, 0.4 * learning_rate), *split_decay(rest, learning_rate)]

    def loss(self, image: Tensor, coarse: Tensor, truth: Tensor, _roi_side: Tensor) -> dict[str, Tensor]:
        side = CONFIG.crop_side
        logits = self.network(halvings(image, side)[side], halvings(coarse, side)[side]).float()
        target = halvings(truth, side // 2)[side // 2]
        probability = torch.sigmoid(logits)
        overlap = (probability * target).sum((1, 2, 3))
        dice = 1 - (2 * overlap + 1) / ((probability + target).sum((1, 2, 3)) + 1)
        return {"total": F.binary_cross_entropy_with_logits(logits, target) + dice.mean()}

    def export(self, path: Path, about: dict[str, Any]) -> None:
        metadata = {name: str(value) for name, value in about.items()}
        save_file({n: v.contiguous() for n, v in self.network.state_dict().items()}, path, metadata)


class UNetRefiner:
    """The trained U-Net behind the refiner's interface."""

    def __init__(self, weights: Path) -> None:
        self.network = UNet()
        self.network.load_state_dict(load_file(weights))
        self.network.eval().backbone.fuse()
        self.network = self.network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def refine(self, image: NDArray[np.uint8], masks: NDArray[Any]) -> NDArray[np.bool_]:
        """Image H×W×3 and masks N×H×W → N×H×W bool."""
        out = np.zeros(masks.shape, bool)
        side = CONFIG.crop_side
        for i, mask in enumerate(masks):
            window = window_of(mask)
            if window.area == 0:
                continue
            roi = roi_around(window, CONFIG)
            pixels = torch.from_numpy(crop_roi(image, roi, side)).permute(2, 0, 1)[None].float()
            coarse = torch.from_numpy(resample(read_mask(window, roi), side, side))[None, None]
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            probability = torch.sigmoid(self.network(pixels, coarse))[0, 0].numpy()
            out[i, roi.y0 : roi.y1, roi.x0 : roi.x1] = resample(probability, roi.width, roi.height) >= 0.5
        return out


def build() -> UNetTrainee:
    """A U-Net on ImageNet weights."""
    torch.manual_seed(0)
    network = UNet()
    load_imagenet(network.backbone)
    return UNetTrainee(network.to(memory_format=torch.channels_last))
