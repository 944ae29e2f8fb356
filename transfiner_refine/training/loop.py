"""The training loop: time-limited slices, exact resume, averaged weights, several processes through DDP."""

from __future__ import annotations

import csv
import os
import pickle
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from transfiner_refine.errors import CheckpointError, DeviceError, InputError
from transfiner_refine.output import atomic_binary_file, atomic_file
from transfiner_refine.training.augment import jitter_colours
from transfiner_refine.training.samples import RefinementSamples

__all__ = ["Schedule", "TrainableModel", "is_main", "process_group", "train"]

_BACKBONE_RATE = 0.4  # learning rate of the backbone, relative to the new layers
_EVALUATION = timedelta(hours=1)  # while the main process scores a checkpoint, the others wait

_UNREADABLE = (OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError)


class TrainableModel(nn.Module, ABC):
    """A network, whose feature extractor is its child ``backbone``, with its loss.

    Subclasses define ``forward(image, coarse, truth, roi_side)`` → terms of the loss with their ``total``; image
    [B, 3, S, S] in [0, 255], masks [B, 1, S, S] in [0, 1], roi_side [B] in pixels.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @abstractmethod
    def export(self, path: Path, about: dict[str, Any]) -> None:
        """Writes the weights for users, with facts about the run."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Backbone at a lower rate; biases, norms and embeddings without weight decay."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.network.named_parameters():
            groups[name.startswith("backbone."), parameter.dim() > 1].append(parameter)
        return [
            {"params": parameters, "lr": learning_rate * (_BACKBONE_RATE if in_backbone else 1)}
            | ({} if decays else {"weight_decay": 0.0})
            for (in_backbone, decays), parameters in groups.items()
        ]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps in all; may be changed between slices.
        batch_size: samples a step.
        learning_rate: of the new layers, after warm-up and before the decay.
        warmup: steps of linear warm-up.
        decay: share of the steps, at the end, over which the learning rate falls linearly to zero.
        weight_decay: of matrices and kernels.
        clip: largest gradient norm.
        average: decay of the running average of the weights that is exported.
        level: share of the steps, at the end, that count alike in that average, in runs that are long enough for it.
        seed: of data order, augmentation and node sampling.
    """

    steps: int = 6000
    batch_size: int = 8
    learning_rate: float = 5e-4
    warmup: int = 100
    decay: float = 0.5
    weight_decay: float = 0.04
    clip: float = 1.0
    average: float = 0.999
    level: float = 0.55
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step, as a share of ``learning_rate``."""
        falling = max(1.0, self.steps * self.decay)
        return min(1.0, (step + 1) / self.warmup, max(0.0, (self.steps - step) / falling))

    def keep(self, step: int) -> float:
        """Share of the average so far that stays in it after a step."""
        horizon = 1 / (1 - self.average)
        # in a short run most of that part is still to come, so there the average goes on fading
        even = self.steps * (1 - self.level) if self.steps * self.level > horizon else self.steps
        fading = min(horizon, (10 + min(step, even)) / 9)  # the first steps should be forgotten soon
        return 1 - 1 / (fading + max(0.0, step - even))


def is_main() -> bool:
    """Whether this process logs, saves and scores."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that ``torchrun`` started, if it did, and leaves them at the end.

    Raises:
        DeviceError: the processes do not find each other.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or distributed.is_initialized():
        yield
        return
    try:
        backend = "nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
        distributed.init_process_group(backend, timeout=_EVALUATION)
    except (RuntimeError, ValueError) as error:
        reason = f"the {size} training processes do not find each other ({error})"
        raise DeviceError(reason, remedy="start them with torchrun") from error
    try:
        yield
        distributed.barrier()  # a process that leaves while another is connected may make that one abort
    finally:  # a process that ends with the connection's threads alive may abort after its work is done
        distributed.destroy_process_group()


class _Run:
    """Model, optimiser, averaged weights and log, saved together so that a resumed run is the same run."""

    def __init__(self, model: TrainableModel, schedule: Schedule, output: Path) -> None:
        self.model, self.schedule, self.output = model, schedule, output
        self.rank, self.size = 0, 1
        if distributed.is_initialized():
            self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        groups = model.parameter_groups(schedule.learning_rate)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=schedule.weight_decay)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.average = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)
        self.step, self.seconds, self.cpu_seconds = 0, 0.0, 0.0
        self.losses: list[dict[str, float]] = []
        self.scores: list[dict[str, float]] = []

    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], _: Any) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), 1 - self.schedule.keep(self.step))

    def save(self) -> None:
        """Writes ``state.pt``, from which the run goes on, and ``refiner.safetensors``, the averaged weights."""
        state = {name: getattr(self, name) for name in ("step", "seconds", "cpu_seconds", "losses", "scores")}
        for name in ("model", "average", "optimizer"):
            state[name] = getattr(self, name).state_dict()
        with atomic_binary_file(self.output / "state.pt") as file:
            torch.save(state, file)
        self.export()

    def load(self) -> bool:
        """Goes on from ``state.pt``, if it exists.

        Raises:
            CheckpointError: it is damaged, or of another network or version.
        """
        file = self.output / "state.pt"
        remedy = "give another --output, or delete the file to start anew"
        if (older := self.output / "state.safetensors").exists():
            raise CheckpointError("the run is of an earlier version", file=older, remedy=remedy)
        if not file.exists():
            return False
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            for name in ("model", "average", "optimizer"):
                getattr(self, name).load_state_dict(state.pop(name))
            for name in ("step", "seconds", "cpu_seconds", "losses", "scores"):
                setattr(self, name, state.pop(name))
        except _UNREADABLE as error:
            first = str(error).partition("\n")[0]
            reason = f"the run cannot go on from it ({first})"
            raise CheckpointError(reason, file=file, remedy=remedy) from error
        return True

    def export(self) -> None:
        about = {"step": self.step, "seconds": round(self.seconds), "cpu_seconds": round(self.cpu_seconds)}
        averaged = self.average.module
        assert isinstance(averaged, TrainableModel)
        averaged.export(self.output / "refiner.safetensors", about | {"schedule": asdict(self.schedule)})

    def log(self, terms: dict[str, float]) -> str:
        """Adds a line to the table of losses; gives it as text."""
        row: dict[str, float] = {"step": self.step, "samples": self.step * self.schedule.batch_size}
        row |= {"seconds": round(self.seconds, 1), "cpu_seconds": round(self.cpu_seconds, 1)}
        self.losses.append(row | {name: round(value, 5) for name, value in terms.items()})
        self.write_tables()
        text = "  ".join(f"{name} {value:.3f}" for name, value in terms.items())
        return f"step {self.step}/{self.schedule.steps}  {self.seconds / 60:.1f} min  {text}"

    def write_tables(self) -> None:
        """Writes ``loss.csv`` and ``scores.csv`` anew, so that steps made again after a resume are listed once."""
        for name, rows in (("loss.csv", self.losses), ("scores.csv", self.scores)):
            if not rows:
                (self.output / name).unlink(missing_ok=True)
                continue
            with atomic_file(self.output / name) as file:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


def train(
    model: TrainableModel,
    samples: RefinementSamples,
    schedule: Schedule,
    output: Path,
    *,
    minutes: float | None = None,
    workers: int = 1,
    autocast: torch.dtype | None = None,
    save_every: float = 180.0,
    log_every: int = 20,
    evaluate_every: int = 0,
    evaluate: Callable[[Path], dict[str, float]] | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """Trains until ``schedule.steps`` or until the time is over; goes on from ``output`` if it holds a state.

    Inside ``process_group`` every process works on its share of each batch; only the main one logs and writes.

    Args:
        model: trained in place, already on its device.
        samples: sample i must depend on i alone.
        output: folder for ``state.pt`` (resume), ``refiner.safetensors`` (averaged weights), ``loss.csv`` and
            ``scores.csv``.
        minutes: stop cleanly after the step in which this long is over.
        workers: processes that prepare samples.
        autocast: precision of the forward pass.
        save_every: seconds between checkpoints.
        evaluate: scores the exported weights, every ``evaluate_every`` steps (0: never) and at the end.

    Returns:
        whether training is complete.

    Raises:
        InputError: a batch cannot be shared out evenly.
        CheckpointError: the loss is no longer finite, or the state in ``output`` cannot be used.
    """
    run = _Run(model, schedule, output)
    rank, size = run.rank, run.size
    if schedule.batch_size % size:
        reason = f"a batch of {schedule.batch_size} cannot be shared out among {size} processes"
        raise InputError(reason, remedy="give a --batch-size that is a multiple of them")
    output.mkdir(parents=True, exist_ok=True)
    if run.load():
        say(f"resumed at step {run.step}")
        if rank == 0:
            run.write_tables()
    # a process of several may draw blocks of the backbone, or nodes, that leave others' parameters unused
    replica = DistributedDataParallel(model, find_unused_parameters=True) if size > 1 else model
    device = next(model.parameters()).device
    loader = DataLoader(
        samples,
        batch_size=schedule.batch_size // size,
        sampler=range(run.step * schedule.batch_size + rank, schedule.steps * schedule.batch_size, size),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    start = saved = time.monotonic()
    before = run.seconds - start, run.cpu_seconds - time.process_time()
    model.train()
    for batch in loader:
        for group, peak in zip(run.optimizer.param_groups, run.peaks, strict=True):
            group["lr"] = peak * schedule.rate(run.step)
        # a step's randomness depends on its number alone, so a resumed run draws what the whole run would have drawn
        torch.manual_seed((schedule.seed * 1_000_003 + run.step) * size + rank)
        over = minutes is not None and time.monotonic() - start > 60 * minutes
        parts = [part.to(device, non_blocking=True) for part in batch]
        terms, over = _step(run, replica, parts, autocast, over)
        run.step += 1
        run.seconds, run.cpu_seconds = before[0] + time.monotonic(), before[1] + time.process_time()
        if rank == 0:
            done = run.step >= schedule.steps
            if run.step % log_every == 0:
                say(run.log(terms))
            if evaluate is not None and (done or (evaluate_every and run.step % evaluate_every == 0)):
                run.export()
                run.scores.append({"step": run.step, **evaluate(output / "refiner.safetensors")})
                run.write_tables()
                gains = (f"{name} {value:.2f}" for name, value in run.scores[-1].items() if name != "step")
                say("  ".join((f"step {run.step}", *gains)))
            if over or done or time.monotonic() - saved > save_every:
                run.save()
                saved = time.monotonic()
        if over:
            break
    return run.step >= schedule.steps


def _step(
    run: _Run, replica: nn.Module, batch: list[Tensor], autocast: torch.dtype | None, over: bool
) -> tuple[dict[str, float], bool]:
    """One step; gives the terms of the loss, and whether any process's time is over."""
    pixels, masks, side = batch
    image = jitter_colours(pixels.float()).contiguous(memory_format=torch.channels_last)
    masks = masks.float() / 255
    with torch.autocast(image.device.type, autocast, enabled=autocast is not None):
        terms = replica(image, masks[:, :1], masks[:, 1:], side)
    run.optimizer.zero_grad(set_to_none=True)
    terms["total"].backward()
    facts = torch.stack([*(term.detach().float() for term in terms.values()), image.new_tensor(over)])
    if run.size > 1:
        distributed.all_reduce(facts)
    if not torch.isfinite(facts).all():
        reason = f"the loss is no longer a number at step {run.step}"
        raise CheckpointError(reason, remedy="lower the learning rate or use fp32")
    nn.utils.clip_grad_norm_(run.model.parameters(), run.schedule.clip)
    run.optimizer.step()
    run.average.update_parameters(run.model)
    *means, overs = (facts / run.size).tolist()
    return dict(zip(terms, means, strict=True)), overs > 0
