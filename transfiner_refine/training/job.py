"""A training run from its parts: data folders, starting weights, device; what the command line calls."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from transfiner_refine.device import choose_device
from transfiner_refine.errors import InputError
from transfiner_refine.model.backbone import load_imagenet
from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.network import MaskTransfiner
from transfiner_refine.model.weights import find_weights
from transfiner_refine.training.datasets import TrainingSet, load_training_set
from transfiner_refine.training.loop import Schedule, Trainee, train
from transfiner_refine.training.samples import RefinementSamples
from transfiner_refine.training.team import Team
from transfiner_refine.training.trainee import RefinerTrainee
from transfiner_refine.training.validate import Validation

__all__ = ["TrainingJob", "draw_curve", "fastest_precision", "open_dataset", "run_training"]


@dataclass(frozen=True)
class TrainingJob:
    """Everything that defines a run.

    Attributes:
        datasets: training sets with their weights.
        output: folder of the run; a run that was interrupted goes on from it.
        schedule: length and speed.
        start: ``imagenet``, the name of built-in weights, or a checkpoint's path.
        backbone: of a run that starts from ``imagenet``.
        validation: sets to score on, empty for none.
        validate_every: steps between scores.
        validate_limit: instances of each validation set that are scored.
        minutes: stop cleanly after this long; None for no limit.
        device: as for ``load_refiner``.
        precision: ``auto`` (bf16 on CUDA; on a CPU whichever of fp32 and bf16 is faster), ``fp32`` or ``bf16``.
        workers: processes that prepare samples.
        threads: CPU threads of the network; None for PyTorch's choice.
    """

    datasets: list[TrainingSet]
    output: Path
    schedule: Schedule = field(default_factory=Schedule)
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


def open_dataset(folder: Path, weight: float = 1.0) -> TrainingSet:
    """A data folder: ``images/``, ``annotations.json`` and any number of detectors' results ``coarse*.json``.

    Raises:
        InputError: a part is missing or damaged.
    """
    images, annotations = folder / "images", folder / "annotations.json"
    if not images.is_dir() or not annotations.is_file():
        raise InputError(
            "not a data folder",
            file=folder,
            remedy="expected images/, annotations.json and optional coarse*.json",
        )
    coarse = [file for file in sorted(folder.glob("coarse*.json")) if not file.stem.endswith("_match")]
    return replace(load_training_set(images, annotations, coarse, weight=weight), name=folder.name)


def run_training(job: TrainingJob, say: Callable[[str], None] = print) -> bool:
    """Trains, or goes on training; see ``TrainingJob``.

    Returns:
        whether the schedule is complete.

    Raises:
        InputError: the data cannot be used.
        CheckpointError: the starting weights cannot be used, or training diverged.
    """
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    with Team.join() as team:
        return _train_in(team, job, say if team.leads else _say_nothing)


def _train_in(team: Team, job: TrainingJob, say: Callable[[str], None]) -> bool:
    """One member's part of ``run_training``."""
    device = choose_device(team.device(job.device))
    torch.manual_seed(job.schedule.seed)
    if job.start == "imagenet":
        network = MaskTransfiner(RefinerConfig(backbone=job.backbone))
        load_imagenet(network.backbone, job.backbone)
    else:
        network = load_network(find_weights(job.start))
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainee = RefinerTrainee(network)
    schedule = job.schedule
    samples = RefinementSamples(
        job.datasets, network.config, count=schedule.steps * schedule.batch_size, seed=schedule.seed
    )
    precision = _precision(job.precision, trainee, samples, device, schedule.batch_size)
    say(
        f"{len(samples)} samples from {sum(len(s.instances) for s in job.datasets)} instances on {device}, "
        f"{'bf16' if precision else 'fp32'}" + (f", {team.size} processes" if team.size > 1 else "")
    )
    evaluate = Validation(job.validation, job.validate_limit, job.device) if job.validation else None
    complete = train(
        trainee,
        samples,
        schedule,
        job.output,
        minutes=job.minutes,
        workers=job.workers,
        autocast=precision,
        evaluate_every=job.validate_every if evaluate else 0,
        evaluate=evaluate,
        say=say,
        team=team,
    )
    if team.leads:
        draw_curve(job.output)
    if complete:
        say(f"done: {job.output / 'refiner.safetensors'}")
    else:
        say(f"stopped; run the same command again to go on ({job.output / 'state.safetensors'})")
    return complete


def _say_nothing(_: str) -> None:
    """Where the lines of all members but the first go."""


def _precision(
    name: str, trainee: Trainee, samples: RefinementSamples, device: torch.device, batch_size: int
) -> torch.dtype | None:
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16
        return fastest_precision(trainee, samples, batch_size) if device.type == "cpu" else None
    return torch.bfloat16 if name == "bf16" else None


def fastest_precision(trainee: Trainee, samples: RefinementSamples, batch_size: int) -> torch.dtype | None:
    """bf16 if a training step in it is faster than in fp32 on this CPU, else None; no weight is changed."""
    items = [samples[i] for i in range(batch_size)]
    pixels, masks, sides = (torch.stack(part) for part in zip(*items, strict=True))
    image = pixels.float().contiguous(memory_format=torch.channels_last)
    trainee.network.train()
    seconds: dict[torch.dtype | None, float] = {}
    for dtype in (None, torch.bfloat16):
        for _ in range(2):  # the first pass pays for allocation and kernel choice
            begin = time.monotonic()
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                terms = trainee.loss(image, masks[:, :1].float() / 255, masks[:, 1:].float() / 255, sides)
            terms["total"].backward()  # type: ignore[no-untyped-call]
            seconds[dtype] = time.monotonic() - begin
            trainee.network.zero_grad(set_to_none=True)
    return min(seconds, key=lambda dtype: seconds[dtype])


def draw_curve(output: Path) -> None:
    """Draws ``loss.csv`` and ``scores.csv`` of a run as ``curve.png``; does nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    losses, scores = _columns(output / "loss.csv"), _columns(output / "scores.csv")
    if not losses:
        return
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    for name, values in losses.items():
        if name not in {"step", "samples", "seconds", "cpu_seconds"}:
            panels[0].plot(losses["step"], _smoothed(values), label=name)
    panels[0].set(xlabel="step", ylabel="loss (running mean of 10 lines)", yscale="log")
    panels[0].legend(loc="upper right", ncols=5)
    if scores:
        for name, values in scores.items():
            if name != "step":
                panels[1].plot(scores["step"], values, marker=".", label=name)
        panels[1].set(xlabel="step", ylabel="gain, points")
        panels[1].legend(fontsize="small")
    figure.savefig(output / "curve.png", dpi=110)


def _columns(file: Path) -> dict[str, list[float]]:
    if not file.exists():
        return {}
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}


def _smoothed(values: list[float]) -> list[float]:
    return [
        sum(values[max(0, i - 9) : i + 1]) / len(values[max(0, i - 9) : i + 1]) for i in range(len(values))
    ]
