"""Whole-image features against the features of a crop around each RoI, everything else being equal.

    python benchmarks/whole_image.py train --dataset DIR:WEIGHT … --output RUN --cpu-minutes N
    python benchmarks/whole_image.py evaluate --weights RUN/refiner.safetensors --data DEVVAL
    python benchmarks/whole_image.py evaluate --weights CROP_RUN/refiner.safetensors --data DEVVAL --crop

The paper's way: one backbone pass an image, shared by its RoIs, so the coarse mask cannot be in the stem and
joins at the incoherence detector. The levels 28, 56 and 112 are RoIAligns of the top-down stride-8 map and of the
stride-4 and stride-2 maps; all that follows is as with crops.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.ops import roi_align

from transfiner_refine.cli.train import WeightedFolder
from transfiner_refine.evaluation.overlap import boundary_iou, mask_iou
from transfiner_refine.formats.images import read_image
from transfiner_refine.model.backbone import load_imagenet
from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.config import ATTENTION_GRIDS, RefinerConfig
from transfiner_refine.model.network import _CONTEXT_GRID, MaskTransfiner, TreeOutput
from transfiner_refine.model.propagate import halvings
from transfiner_refine.model.quadtree import NodeSelector
from transfiner_refine.refine.roi import Roi, crop_roi, resample, roi_around
from transfiner_refine.refiner import Refiner
from transfiner_refine.training.datasets import TrainingSet, decode
from transfiner_refine.training.job import open_dataset
from transfiner_refine.training.loop import Schedule, _export, _log, _State, jitter_colours
from transfiner_refine.training.samples import RefinementSamples
from transfiner_refine.training.simulate import simulate_coarse
from transfiner_refine.training.trainee import RefinerTrainee
from transfiner_refine.types import MaskWindow

LONG_SIDE = 640  # of the resized image, pixels
_MULTIPLE = 32  # images are padded to multiples of the coarsest stride
_GREY = 127  # zero after the backbone's normalisation
_SAMPLING = 2  # sampling points a side in each cell, as in Mask R-CNN
_MOST_ROIS = 8  # of one image in a training step
_ENOUGH_ROIS = 7  # images of a step are drawn until it has this many: eight to nine on average
_PROBE_STEPS = 20  # after these the speed is known well enough to set the number of steps

Photo: TypeAlias = "NDArray[np.uint8]"  # [H, W, 3] RGB


class WholeImageTransfiner(MaskTransfiner):
    """Mask Transfiner whose RoIs share the features of their image; the parameters are the same.

    ``see`` the images, ``place`` the RoIs on them, then call it as a ``MaskTransfiner``.
    """

    def see(self, images: Tensor) -> None:
        """The backbone pass: images [I, 3, H, W] in [0, 255], sides multiples of 32."""
        images = images.contiguous(memory_format=torch.channels_last)
        maps = self.backbone(images, torch.full_like(images[:, :1], 0.5))  # the stem centres 0.5 to zero
        self.stride2, self.stride4, self.stride8 = maps[0], maps[1], self.top_down(maps[2:])

    def place(self, owner: Tensor, boxes: Tensor) -> None:
        """owner [K] int64, the image of each RoI; boxes [K, 4] XYXY in pixels of the images."""
        self.owner, self.boxes = owner, boxes

    def forward(self, image: Tensor, coarse: Tensor, selector: NodeSelector, depth: int) -> TreeOutput:
        pixels, masks = halvings(image, self.config.crop_side), halvings(coarse, _CONTEXT_GRID)
        base, quarter, half = (
            self._aligned(maps, stride, grid)
            for maps, stride, grid in zip(
                (self.stride8, self.stride4, self.stride2), (8, 4, 2), ATTENTION_GRIDS, strict=True
            )
        )
        return self.label(base, (quarter, half), pixels, masks, selector, depth)

    def _aligned(self, maps: Tensor, stride: int, grid: int) -> Tensor:
        """RoIAlign of the images' maps: [K, C, grid, grid]."""
        rois = torch.cat((self.owner[:, None].to(self.boxes.dtype), self.boxes / stride), 1)
        return roi_align(maps.float(), rois, grid, 1.0, _SAMPLING, aligned=True)


def resized(image: Photo) -> tuple[Photo, tuple[float, float]]:
    """The image at a long side of 640 px, and by how much its width and height were scaled."""
    height, width = image.shape[:2]
    new_width, new_height = (round(side * LONG_SIDE / max(height, width)) for side in (width, height))
    return resample(image, new_width, new_height), (new_width / width, new_height / height)


def stacked(images: Sequence[Photo]) -> Tensor:
    """One batch [I, 3, H, W] uint8, padded to multiples of 32; to a square would cost a third more for nothing."""
    height, width = (-(-max(i.shape[axis] for i in images) // _MULTIPLE) * _MULTIPLE for axis in (0, 1))
    batch = np.full((len(images), height, width, 3), _GREY, np.uint8)
    for place, image in zip(batch, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


def scaled_box(roi: Roi, scale: tuple[float, float]) -> list[float]:
    """XYXY of an RoI in pixels of the resized image."""
    return [roi.x0 * scale[0], roi.y0 * scale[1], roi.x1 * scale[0], roi.y1 * scale[1]]


def flipped(mask: MaskWindow) -> MaskWindow:
    """The mask in the mirrored image."""
    return replace(mask, values=mask.values[:, ::-1], x=mask.image_size[1] - mask.x - mask.values.shape[1])


class SceneSamples(RefinementSamples):
    """Training steps: item i, a function of (seed, i) alone, holds a few images and about eight of their RoIs.

    Sets are drawn so that their shares of the *instances* are their weights; the images of a step are all upright
    or all lying, so that little is padded. An item is (images [I, 3, H, W] uint8, pixels [K, 3, S, S] uint8, masks
    [K, 2, S, S] uint8 coarse and true, owner [K] int64, boxes [K, 4] float32, RoI side [K] float32).
    """

    def __init__(self, sets: list[TrainingSet], config: RefinerConfig, count: int, seed: int) -> None:
        super().__init__(sets, config, count=count, seed=seed)
        self.images: list[tuple[TrainingSet, list[int]]] = []  # the instances of each photo
        weights: list[float] = []
        for data, share in zip(sets, self.share, strict=True):
            members: dict[int, list[int]] = defaultdict(list)
            for i, instance in enumerate(data.instances):
                members[instance.image].append(i)
            self.images += [(data, found) for found in members.values()]
            weights += [share / sum(min(len(f), _MOST_ROIS) for f in members.values())] * len(members)
        sizes = [data.instances[found[0]].truth["size"] for data, found in self.images]
        self.weights, self.upright = np.array(weights), np.array([h > w for h, w in sizes])
        rois = [min(len(found), _MOST_ROIS) for _, found in self.images]
        self.upright_share = float((self.weights * rois)[self.upright].sum())

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:  # type: ignore[override]
        rng = np.random.default_rng((self.seed, index))
        torch.manual_seed(self.seed * 1_000_003 + index)  # for ``jitter_colours``
        drawn = self.weights * (self.upright == (rng.random() < self.upright_share))
        images: list[Photo] = []
        rois: list[tuple[Tensor, Tensor, int, list[float], int]] = []
        while len(rois) < _ENOUGH_ROIS:
            data, members = self.images[int(rng.choice(len(drawn), p=drawn / drawn.sum()))]
            flip = rng.random() < 0.5
            image = self._photo(data.photo(data.instances[members[0]].image), flip)
            small, scale = resized(image)
            for i in rng.permutation(members)[:_MOST_ROIS]:
                pair = self._masks(data, int(i), rng)
                coarse, truth = (flipped(mask) for mask in pair) if flip else pair
                roi = roi_around(coarse, self.config, rng.uniform(*self.augmentation.margin))
                pixels = torch.from_numpy(crop_roi(image, roi, self.config.detail_side)).permute(2, 0, 1)
                masks = torch.from_numpy(np.stack([self._resized(mask, roi) for mask in (coarse, truth)]))
                rois.append((pixels, masks, len(images), scaled_box(roi, scale), roi.side))
            images.append(small)
        pixel_list, mask_list, owner, boxes, sides = zip(*rois, strict=True)
        numbers = torch.tensor(owner), torch.tensor(boxes), torch.tensor(sides)
        return stacked(images), torch.stack(pixel_list), torch.stack(mask_list), *numbers

    def _photo(self, image: Photo, flip: bool) -> Photo:
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        jittered = jitter_colours(pixels.flip(3) if flip else pixels)
        return np.asarray(jittered[0].permute(1, 2, 0).round().byte().contiguous().numpy(), np.uint8)

    def _masks(self, data: TrainingSet, i: int, rng: np.random.Generator) -> tuple[MaskWindow, MaskWindow]:
        """Coarse and true mask of an instance, drawn as for crops."""
        truth, found = decode(data.instances[i].truth), data.instances[i].coarse
        if found and rng.random() < self.augmentation.real_coarse:
            return decode(found[int(rng.integers(len(found)))]), truth
        return simulate_coarse(truth, rng), truth


class WholeImageRefiner(Refiner):
    """The refiner with one backbone pass an image; takes one image at a time."""

    network: WholeImageTransfiner

    @torch.inference_mode()
    def see(self, image: Photo) -> None:
        """The backbone pass, before the image's masks are refined."""
        small, self._scale = resized(image)
        self.network.see(stacked([small]).float())

    def _refine_batch(
        self, images: list[Photo], masks: list[MaskWindow], rois: list[Roi]
    ) -> list[NDArray[np.float32]]:
        boxes = [scaled_box(roi, self._scale) for roi in rois]
        self.network.place(torch.zeros(len(masks), dtype=torch.int64), torch.tensor(boxes))
        return super()._refine_batch(images, masks, rois)


@click.group(help=__doc__.split("\n")[0])
def main() -> None:
    torch.set_num_threads(1)


@main.command(name="train", short_help="Train on whole images for a given CPU time.")
@click.option("--dataset", "datasets", type=WeightedFolder(), multiple=True, required=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--cpu-minutes", type=float, required=True, help="Of the training process.")
def train(datasets: list[tuple[Path, float]], output: Path, cpu_minutes: float) -> None:
    """The learning rate falls to zero at the end of the CPU time, by the speed measured so far."""
    torch.manual_seed(0)
    network = WholeImageTransfiner(RefinerConfig())
    load_imagenet(network.backbone)
    trainee = RefinerTrainee(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    schedule = Schedule(steps=10**6)
    samples = SceneSamples([open_dataset(*pair) for pair in datasets], network.config, schedule.steps, 0)
    output.mkdir(parents=True, exist_ok=True)
    network.train()
    state, seen, start, cpu_start = _State(trainee, schedule), 0, time.monotonic(), time.process_time()
    loader = DataLoader(samples, batch_size=None, num_workers=1, prefetch_factor=4)
    for images, pixels, masks, owner, boxes, sides in loader:
        for group in state.optimizer.param_groups:
            group["lr"] = group["peak"] * schedule.rate(state.step)
        torch.manual_seed(state.step)
        with torch.autocast("cpu", torch.bfloat16):
            network.see(images.float())
            network.place(owner, boxes)
            terms = trainee.loss(pixels.float(), masks[:, :1] / 255, masks[:, 1:] / 255, sides)
        state.optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), schedule.clip)
        state.optimizer.step()
        state.update_average(schedule.keep(state.step))
        state.step, seen = state.step + 1, seen + len(owner)
        state.seconds, state.cpu_seconds = time.monotonic() - start, time.process_time() - cpu_start
        if state.step >= _PROBE_STEPS:
            steps = max(state.step, int(60 * cpu_minutes * state.step / state.cpu_seconds))
            schedule = replace(schedule, steps=steps, warmup=min(100, steps // 8))
        if state.step % 20 == 0 or state.step >= schedule.steps:
            values = {name: float(value.detach()) for name, value in terms.items()}
            _log(output / "loss.csv", state, schedule, values, click.echo)
        if state.step >= schedule.steps:
            break
    _export(trainee, state, output, schedule)
    click.echo(f"{seen} RoIs in {state.step} steps and {state.cpu_seconds:.0f} CPU-s")


@main.command(short_help="Scores and CPU time on dev-val.")
@click.option("--weights", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--crop", is_flag=True, help="The weights are of the network on crops.")
def evaluate(weights: Path, data: Path, crop: bool) -> None:
    """Counted: true area of 1024 px or more, coarse IoU of 0.5 or more; timed: all instances."""
    network = load_network(weights)
    if not crop:
        network = WholeImageTransfiner(network.config)
        network.load_state_dict(load_network(weights).state_dict())
    refiner = (Refiner if crop else WholeImageRefiner)(network, device="cpu")
    click.echo("| coarse | set | n | IoU | boundary IoU | worse | CPU ms each |\n|---|---|" + "--:|" * 5)
    for kind in ("maskhead", "sim"):
        for folder in (data / name for name in ("ccp", "davis", "coco")):
            scores, milliseconds = score(refiner, folder, kind)
            means = [f"{scores[:, i].mean():.1f} → {scores[:, i + 1].mean():.1f}" for i in (0, 2)]
            worse = 100 * (scores[:, 1] < scores[:, 0] - 0.5).mean()
            cells = [kind, folder.name, str(len(scores)), *means, f"{worse:.0f} %", f"{milliseconds:.0f}"]
            click.echo(f"| {' | '.join(cells)} |")


def score(refiner: Refiner, folder: Path, kind: str) -> tuple[NDArray[np.float64], float]:
    """[n, 4] IoU before and after, boundary IoU before and after, in points; CPU ms an instance."""
    content = json.loads((folder / "annotations.json").read_text())
    truths = {entry["id"]: entry["segmentation"] for entry in content["annotations"]}
    records = json.loads((folder / f"coarse_{kind}.json").read_text())
    matches = json.loads((folder / f"coarse_{kind}_match.json").read_text())
    pairs = defaultdict(list)
    for record, match in zip(records, matches, strict=True):
        masks = record["segmentation"], truths[match["annotation_id"]]
        pairs[record["image_id"]].append((decode(masks[0]), decode(masks[1])))
    scores, seconds = [], 0.0
    for entry in content["images"]:
        found = pairs[entry["id"]]
        image = read_image(folder / "images" / entry["file_name"]).pixels
        start = time.process_time()
        if isinstance(refiner, WholeImageRefiner):
            refiner.see(image)
        refined = refiner.refine_windows([image], [coarse for coarse, _ in found], [0] * len(found))
        seconds += time.process_time() - start
        for (coarse, truth), mask in zip(found, refined, strict=True):
            if truth.area >= 1024 and mask_iou(coarse, truth) >= 0.5:
                scores.append([100 * of(m, truth) for of in (mask_iou, boundary_iou) for m in (coarse, mask)])
    return np.array(scores), 1000 * seconds / len(records)


if __name__ == "__main__":
    main()
