"""A training run from its parts: data folders, starting weights, device, held-out scores; what the command calls."""

from __future__ import annotations

import csv
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from torch.utils.data import default_collate

from transfiner_refine.device import choose_device
from transfiner_refine.evaluation.matched import MIN_AREA, MIN_COARSE_IOU
from transfiner_refine.evaluation.overlap import boundary_iou, mask_iou
from transfiner_refine.masks import MaskWindow
from transfiner_refine.model.backbone import load_imagenet
from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.network import MaskTransfiner
from transfiner_refine.model.weights import find_weights
from transfiner_refine.refiner import load_refiner
from transfiner_refine.training.datasets import TrainingSet
from transfiner_refine.training.loop import Schedule, TrainableModel, is_main, process_group, train
from transfiner_refine.training.objective import RefinementModel
from transfiner_refine.training.samples import Augmentation, RefinementSamples
from transfiner_refine.training.simulate import simulate_coarse

__all__ = ["TrainingJob", "run_training"]


@dataclass(frozen=True)
class TrainingJob:
    """Everything that defines a run.

    Attributes:
        datasets: training sets with their weights.
        output: folder of the run; an interrupted run in it goes on.
        schedule: length and speed.
        augmentation: how samples are changed; see ``training.samples``.
        start: ``imagenet``, the name of built-in weights, or a checkpoint's path.
        backbone: of a run that starts from ``imagenet``.
        validation: sets to score on, ``validate_limit`` instances of each, every ``validate_every`` steps.
        minutes: stop cleanly after this long; None for no limit.
        device: as for ``load_refiner``.
        precision: ``auto`` (bf16 on CUDA; on a CPU whichever of fp32 and bf16 is faster), ``fp32`` or ``bf16``.
        workers: processes that prepare samples.
        threads: CPU threads of the network; None for PyTorch's choice.
    """

    datasets: list[TrainingSet]
    output: Path
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augmentation = field(default_factory=Augmentation)
    start: str = "imagenet"
    backbone: str = "lite2"
    validation: list[TrainingSet] = field(default_factory=list)
    validate_every: int = 500
    validate_limit: int = 40
    minutes: float | None = None
    device: str = "auto"
    precision: str = "auto"
    workers: int = 1
    threads: int | None = None


def run_training(job: TrainingJob, say: Callable[[str], None] = print) -> bool:
    """Trains, or goes on training; see ``TrainingJob``. The caller's random state and threads stay as they are.

    Returns:
        whether the schedule is complete.

    Raises:
        InputError: the data cannot be used.
        CheckpointError: the starting weights or the run's state cannot be used, or training diverged.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(job.threads or threads)
        with process_group(), torch.random.fork_rng(range(torch.cuda.device_count())):
            return _train(job, say if is_main() else lambda _: None)
    finally:
        torch.set_num_threads(threads)


def _train(job: TrainingJob, say: Callable[[str], None]) -> bool:
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    name = job.device
    if processes > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = choose_device(name)
    if job.start == "imagenet":
        network = MaskTransfiner(RefinerConfig(backbone=job.backbone))
        load_imagenet(network.backbone, job.backbone)
    else:
        network = load_network(find_weights(job.start))
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model, schedule = RefinementModel(network), job.schedule
    count = schedule.steps * schedule.batch_size
    samples = RefinementSamples(
        job.datasets, network.config, count=count, seed=schedule.seed, augmentation=job.augmentation
    )
    bf16 = job.precision == "bf16"
    if job.precision == "auto":
        bf16 = device.type == "cuda" or (
            device.type == "cpu" and _is_bf16_faster(model, samples, schedule.batch_size)
        )
    say(
        f"{len(samples)} samples from {sum(len(s.instances) for s in job.datasets)} instances on {device}, "
        f"{'bf16' if bf16 else 'fp32'}" + (f", {processes} processes" if processes > 1 else "")
    )
    complete = train(
        model,
        samples,
        schedule,
        job.output,
        minutes=job.minutes,
        workers=job.workers,
        autocast=torch.bfloat16 if bf16 else None,
        evaluate_every=job.validate_every,
        evaluate=_evaluation(job) if job.validation else None,
        say=say,
    )
    if is_main():
        _draw_curve(job.output)
    if complete:
        say(f"done: {job.output / 'refiner.safetensors'}")
    else:
        say(f"stopped; run the same command again to go on ({job.output / 'state.pt'})")
    return complete


def _is_bf16_faster(model: TrainableModel, samples: RefinementSamples, batch_size: int) -> bool:
    """Whether a training step in bf16 is faster than in fp32 on this CPU; changes no weight."""
    pixels, masks, sides = default_collate([samples[i] for i in range(batch_size)])
    image = pixels.float().contiguous(memory_format=torch.channels_last)
    seconds = {}
    for bf16 in (False, True):
        for _ in range(2):  # the first pass pays for allocation and kernel choice
            begin = time.monotonic()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                terms = model(image, masks[:, :1].float() / 255, masks[:, 1:].float() / 255, sides)
            terms["total"].backward()
            seconds[bf16] = time.monotonic() - begin
            model.zero_grad(set_to_none=True)
    return seconds[True] < seconds[False]


def _evaluation(job: TrainingJob) -> Callable[[Path], dict[str, float]]:
    """A function from a checkpoint to its mean gains in IoU and boundary IoU on ``job.validation``, in points.

    Instances with a detector's mask are scored on it, the others on a simulated one; always the same instances.
    """
    chosen: dict[str, list[tuple[TrainingSet, int, MaskWindow, MaskWindow]]] = {}
    for data in job.validation:
        rng = np.random.default_rng(zlib.crc32(data.name.encode()))
        chosen[data.name] = []
        for index in rng.permutation(len(data.instances)):
            instance = data.instances[int(index)]
            truth = instance.truth.decode()
            coarse = instance.coarse[0].decode() if instance.coarse else simulate_coarse(truth, rng)
            if truth.area >= MIN_AREA and mask_iou(coarse, truth) >= MIN_COARSE_IOU:
                chosen[data.name].append((data, instance.image, truth, coarse))
            if len(chosen[data.name]) == job.validate_limit:
                break

    def evaluate(weights: Path) -> dict[str, float]:
        refiner = load_refiner(weights, device=job.device, engine="torch")
        scores: dict[str, float] = {}
        for name, instances in chosen.items():
            gains = {"IoU": 0.0, "boundary IoU": 0.0}
            for data, image, truth, coarse in instances:
                refined = refiner.refine_windows([data.photo(image)], [coarse], [0])[0]
                for measure, overlap in (("IoU", mask_iou), ("boundary IoU", boundary_iou)):
                    gains[measure] += (
                        100 * (overlap(refined, truth) - overlap(coarse, truth)) / len(instances)
                    )
            scores |= {f"{name} {measure}": round(gain, 3) for measure, gain in gains.items()}
        return scores

    return evaluate


def _draw_curve(output: Path) -> None:
    """Draws ``loss.csv`` and ``scores.csv`` of a run as ``curve.png``; does nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    files = [file for name in ("loss.csv", "scores.csv") if (file := output / name).exists()]
    figure = Figure(figsize=(10, 4), layout="constrained")
    for number, file in enumerate(files, 1):
        with file.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        panel, is_loss = figure.add_subplot(1, len(files), number), file.name == "loss.csv"
        for name in [name for name in rows[0] if name not in {"step", "samples", "seconds", "cpu_seconds"}]:
            values = [float(row[name]) for row in rows]
            means = [float(np.mean(values[max(0, i - 9) : i + 1])) for i in range(len(values))]
            label = name.replace("$", r"\$")  # or it would be a formula
            steps = [int(row["step"]) for row in rows]
            panel.plot(steps, means if is_loss else values, marker="" if is_loss else ".", label=label)
        panel.set(xlabel="step", ylabel="loss (running mean of 10 lines)" if is_loss else "gain, points")
        panel.set_yscale("log" if is_loss else "linear")
        panel.legend(fontsize="small", ncols=2)
    if files:
        figure.savefig(output / "curve.png", dpi=110)
