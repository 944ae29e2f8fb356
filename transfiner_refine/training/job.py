"""A training run from its parts: data, starting weights, device, held-out scores; what the command calls."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data import default_collate

from transfiner_refine.device import choose_device
from transfiner_refine.errors import InputError, counted
from transfiner_refine.evaluation.matched import MIN_AREA, MIN_COARSE_IOU, matched_scores
from transfiner_refine.evaluation.overlap import mask_iou
from transfiner_refine.masks import MaskWindow
from transfiner_refine.model.backbone import load_imagenet
from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.network import MaskTransfiner
from transfiner_refine.model.weights import find_weights, weights_digest
from transfiner_refine.refiner import load_refiner
from transfiner_refine.training.datasets import TrainingSet, held_out
from transfiner_refine.training.loggers import open_logger
from transfiner_refine.training.loop import Callback, is_main, process_group, train
from transfiner_refine.training.objective import RefinementModel
from transfiner_refine.training.run import draw_curve, read_record
from transfiner_refine.training.samples import Augmentation, RefinementSamples
from transfiner_refine.training.schedule import FROM_SCRATCH, Schedule, TrainableModel
from transfiner_refine.training.simulate import simulate_coarse

__all__ = ["TrainingJob", "run_training"]


@dataclass(frozen=True)
class TrainingJob:
    """Everything that defines a run.

    Attributes:
        datasets: training sets with their weights.
        output: folder of the run; an interrupted run in it goes on.
        schedule: length and speed; what it leaves open follows from ``start``.
        augmentation: how samples are changed; see ``training.samples``.
        start: ``imagenet`` to train from scratch, the name of built-in weights, or a checkpoint's path.
        backbone: of a run that starts from ``imagenet``.
        validation: sets to score on, ``validate_limit`` instances of each, every ``validate_every`` steps.
        hold_out: share of the images of each training set that is scored on instead, where no ``validation`` is given.
        validate_every: None for a tenth of the steps.
        minutes: stop cleanly after this long; None for no limit.
        device: as for ``load_refiner``.
        precision: ``auto`` (bf16 on CUDA; on a CPU whichever of fp32 and bf16 is faster), ``fp32`` or ``bf16``.
        workers: processes that prepare samples.
        threads: CPU threads of the network; None for PyTorch's choice.
        loggers: names of ``training.loggers.LOGGERS`` that are told losses and scores.
        callbacks: functions that are told them, by step and name.
    """

    datasets: list[TrainingSet]
    output: Path
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augmentation = field(default_factory=Augmentation)
    start: str = "lite"
    backbone: str = "lite2"
    validation: list[TrainingSet] = field(default_factory=list)
    hold_out: float = 0.1
    validate_every: int | None = None
    validate_limit: int = 40
    minutes: float | None = None
    device: str = "auto"
    precision: str = "auto"
    workers: int = 1
    threads: int | None = None
    loggers: Sequence[str] = ()
    callbacks: Sequence[Callback] = ()


def run_training(job: TrainingJob, say: Callable[[str], None] = print, *, progress: bool = False) -> bool:
    """Trains, or goes on training; see ``TrainingJob``. The caller's random state and threads stay as they are.

    Args:
        job: the run.
        say: is given what there is to say, a line at a time.
        progress: show a bar on stderr, if that is a terminal.

    Returns:
        whether the schedule is complete.

    Raises:
        InputError: the data cannot be used, or the folder holds a run made from something else.
        CheckpointError: the starting weights or the run's state cannot be used, or training diverged.
        KeyboardInterrupt: after Ctrl-C, when the step under way is done and saved.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(job.threads or threads)
        with process_group(), torch.random.fork_rng(range(torch.cuda.device_count())):
            return _train(job, say if is_main() else lambda _: None, progress)
    finally:
        torch.set_num_threads(threads)


def _train(job: TrainingJob, say: Callable[[str], None], progress: bool) -> bool:
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    name = job.device
    if processes > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device, from_scratch = choose_device(name), job.start == FROM_SCRATCH
    if from_scratch:
        start = f"{job.start} {job.backbone}"
        network = MaskTransfiner(RefinerConfig(backbone=job.backbone))
        load_imagenet(network.backbone, job.backbone)
    else:
        weights = find_weights(job.start)
        start = f"{Path(job.start).name} {weights_digest(weights)[:12]}"
        network = load_network(weights)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model, schedule = RefinementModel(network), job.schedule.starting_from(job.start)
    sets, validation = job.datasets, job.validation
    if not validation and job.hold_out:
        sets, validation = held_out(sets, job.hold_out, most=job.validate_limit)
    count = schedule.steps * schedule.batch_size
    samples = RefinementSamples(
        sets, network.config, count=count, seed=schedule.seed, augmentation=job.augmentation
    )
    precision = job.precision
    if precision == "auto":  # a run keeps the one that it has begun with
        precision = read_record(job.output).get("made_from", {}).get("precision", "auto")
    if precision == "auto":
        is_faster = device.type == "cpu" and _is_bf16_faster(model, samples, schedule.batch_size)
        precision = "bf16" if is_faster or device.type == "cuda" else "fp32"
    made_from: dict[str, Any] = {f"data {number}": each.facts for number, each in enumerate(sets, 1)}
    made_from |= {"start": start, "precision": precision, **asdict(job.augmentation)}
    total = counted(sum(len(each.instances) for each in sets), "instance")
    images = counted(sum(len(each.images) for each in sets), "image")
    team = f", {processes} processes" if processes > 1 else ""
    say(f"{total} in {images}, on {device} in {precision}{team}")
    say(f"{schedule.steps} steps of {schedule.batch_size} samples, learning rate {schedule.learning_rate:g}")
    held = [f"{counted(len(each.instances), 'instance')} of {each.name}" for each in validation]
    nothing = "nothing, so nothing is scored; give --validate SET, or more images"
    say(f"held out: {', '.join(held) or nothing}")
    loggers = [
        open_logger(name, job.output, made_from | asdict(schedule)) for name in job.loggers if is_main()
    ]
    complete = train(
        model,
        samples,
        schedule,
        job.output,
        made_from=made_from,
        minutes=job.minutes,
        workers=job.workers,
        autocast=torch.bfloat16 if precision == "bf16" else None,
        evaluate_every=job.validate_every or max(1, schedule.steps // 10),
        evaluate=_evaluation(job, validation) if validation else None,
        evaluate_start=not from_scratch,
        callbacks=[*loggers, *job.callbacks],
        progress=progress,
        say=say,
    )
    if is_main():
        draw_curve(job.output)
    _say_end(job, complete, say)
    return complete


def _say_end(job: TrainingJob, complete: bool, say: Callable[[str], None]) -> None:
    if not complete:
        say(f"stopped; run the same command again to go on ({job.output / 'state.pt'})")
        return
    record = read_record(job.output)
    if record.get("best") and record["best"][0] != record["step"]:
        step, gain = record["best"]
        where = f"step {step}" if step else "the weights it started from"
        say(f"best on what was held out: {where}, {gain:+.2f} points ({job.output / 'best.safetensors'})")
    say(f"done: {job.output / 'refiner.safetensors'}")


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


def _evaluation(job: TrainingJob, sets: Sequence[TrainingSet]) -> Callable[[Path], dict[str, float]]:
    """A function from a checkpoint to its mean gains in IoU and boundary IoU on each set, in points.

    Instances with a detector's mask are scored on it, the others on a simulated one; always the same instances.
    """
    chosen: dict[str, list[tuple[TrainingSet, int, MaskWindow, MaskWindow]]] = {}
    for number, data in enumerate(sets, 1):
        name = data.name if data.name not in chosen else f"{data.name} {number}"
        rng, chosen[name] = np.random.default_rng(zlib.crc32(data.name.encode())), []
        for index in rng.permutation(len(data.instances)):
            instance = data.instances[int(index)]
            truth = instance.truth.decode()
            coarse = instance.coarse[0].decode() if instance.coarse else simulate_coarse(truth, rng)
            if truth.area >= MIN_AREA and mask_iou(coarse, truth) >= MIN_COARSE_IOU:
                chosen[name].append((data, instance.image, truth, coarse))
            if len(chosen[name]) == job.validate_limit:
                break
        if not chosen[name]:
            reason = (
                f"{name} has no instance to score: none has {MIN_AREA} pixels and a coarse mask that fits"
            )
            raise InputError(reason, remedy="give another --validate, or --hold-out 0")

    def evaluate(weights: Path) -> dict[str, float]:
        refiner = load_refiner(weights, device=job.device, engine="torch")
        scores: dict[str, float] = {}
        for name, instances in chosen.items():
            _, _, truths, coarses = zip(*instances, strict=True)
            refined = (
                refiner.refine_windows([data.photo(image)], [coarse], [0])[0]
                for data, image, _, coarse in instances
            )
            total = matched_scores(truths, coarses, refined, min_area=0, min_coarse_iou=0).summary["all"]
            for measure, change in (("IoU", total.iou_change), ("boundary IoU", total.boundary_iou_change)):
                assert change is not None
                scores[f"{name} {measure}"] = round(100 * change.mean, 3)
        return scores

    return evaluate
