"""The yardstick: a plain U-Net refiner with the same backbone, trained by the same loop on the same samples.

    python benchmarks/unet.py --dataset DIR:WEIGHT … --output RUN
    python benchmarks/devval.py --data DEVVAL --yardstick RUN/refiner.safetensors

It sees a 224 px crop of the coarse box × 1.25 with the mask as fourth channel and predicts the whole crop at
stride 2 through a 64-channel decoder. If the quadtree does not beat it, the quadtree is not worth its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from transfiner_refine.cli.train import WeightedFolder
from transfiner_refine.masks import MaskWindow
from transfiner_refine.model.backbone import EfficientNetLite, fold_norms, load_imagenet
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.propagate import area_pyramid
from transfiner_refine.refine.roi import crop_roi, read_mask, resample, roi_around
from transfiner_refine.training import Schedule, open_dataset
from transfiner_refine.training.loop import train
from transfiner_refine.training.objective import map_loss
from transfiner_refine.training.samples import RefinementSamples
from transfiner_refine.training.schedule import TrainableModel

CONFIG = RefinerConfig(roi_max_aspect=1000.0)  # the plain box
_WIDTH = 64


class UNet(nn.Module):
    """Encoder: EfficientNet-lite2 with the mask in its stem; decoder: one 3×3 convolution a scale, to stride 2."""

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


class UNetModel(TrainableModel):
    """The U-Net with its loss, BCE + dice."""

    def forward(self, image: Tensor, coarse: Tensor, truth: Tensor, _roi_side: Tensor) -> dict[str, Tensor]:
        side = CONFIG.crop_side
        logits = self.network(area_pyramid(image, side)[side], area_pyramid(coarse, side)[side]).float()
        target = area_pyramid(truth, side // 2)[side // 2]
        return {"total": map_loss(logits.squeeze(1), target.squeeze(1)).mean()}

    def export(self, path: Path, about: dict[str, Any]) -> None:
        metadata = {name: str(value) for name, value in about.items()}
        save_file({n: v.contiguous() for n, v in self.network.state_dict().items()}, path, metadata)


class UNetRefiner:
    """The trained U-Net behind the refiner's interface."""

    def __init__(self, weights: Path) -> None:
        self.network = UNet()
        self.network.load_state_dict(load_file(weights))
        fold_norms(self.network.eval().backbone)
        self.network = self.network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def refine_windows(
        self, images: Sequence[NDArray[np.uint8]], masks: Sequence[MaskWindow], image_index: Sequence[int]
    ) -> list[MaskWindow]:
        """As ``Refiner.refine_windows``."""
        refined, side = [], CONFIG.crop_side
        for mask, index in zip(masks, image_index, strict=True):
            if mask.area == 0:
                refined.append(mask)
                continue
            roi = roi_around(mask, CONFIG)
            pixels = torch.from_numpy(crop_roi(images[index], roi, side)).permute(2, 0, 1)[None].float()
            coarse = torch.from_numpy(resample(read_mask(mask, roi), side, side))[None, None]
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            probability = torch.sigmoid(self.network(pixels, coarse))[0, 0].numpy()
            values = resample(probability, roi.width, roi.height) >= 0.5
            refined.append(MaskWindow(values, roi.x0, roi.y0, mask.image_size))
        return refined


def build() -> UNetModel:
    """A U-Net on ImageNet weights."""
    torch.manual_seed(0)
    network = UNet()
    load_imagenet(network.backbone)
    return UNetModel(network.to(memory_format=torch.channels_last))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dataset", "datasets", type=WeightedFolder(), multiple=True, required=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--steps", type=click.IntRange(min=1), default=6000, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=5e-4, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(
    datasets: tuple[tuple[Path, float], ...],
    output: Path,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    threads: int,
) -> None:
    """Train the yardstick; an interrupted run goes on."""
    torch.set_num_threads(threads)
    schedule = Schedule(steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    sets = [open_dataset(folder, weight) for folder, weight in datasets]
    samples = RefinementSamples(sets, CONFIG, count=steps * batch_size, seed=seed)
    train(build(), samples, schedule, output, autocast=torch.bfloat16, say=click.echo)


if __name__ == "__main__":
    main()
