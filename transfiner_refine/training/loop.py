"""The training loop: slices that stop on time, exact resume, an averaged copy of the weights."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from transfiner_refine.errors import CheckpointError, InputError
from transfiner_refine.output import atomic_binary_file, atomic_file
from transfiner_refine.training.samples import RefinementSamples
from transfiner_refine.training.team import Team

__all__ = ["Schedule", "Trainee", "train"]


class Trainee(Protocol):
    """What the loop trains."""

    @property
    def network(self) -> nn.Module:
        """The network, on its device."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Optimiser groups with their learning rates."""

    def loss(self, image: Tensor, coarse: Tensor, truth: Tensor, roi_side: Tensor) -> dict[str, Tensor]:
        """Terms of the loss with their ``total``; image [B, 3, S, S] in [0, 255], masks [B, 1, S, S] in [0, 1]."""

    def export(self, path: Path, about: dict[str, Any]) -> None:
        """Writes the weights for users."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps in all; may be changed between slices.
        batch_size: samples a step.
        learning_rate: of the new layers, after warm-up and before the decay.
        warmup: steps of linear warm-up.
        decay: share of the steps over which the learning rate falls linearly to zero, at the end.
        weight_decay: of matrices and kernels.
        clip: largest gradient norm.
        average: decay of the running average of the weights that is exported.
        level: share of the steps, at the end, over which all weights count alike in that average rather than fade; in
            runs that are long enough for it.
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
        # in a short run most of that part is still on its way, so there the average goes on fading
        even = self.steps * (1 - self.level) if self.steps * self.level > horizon else self.steps
        fading = min(horizon, (10 + min(step, even)) / 9)  # the first steps should be forgotten soon
        return 1 - 1 / (fading + max(0.0, step - even))


class _From(Sampler[int]):
    """A member's sample numbers in order, from the first one a run has not seen yet."""

    def __init__(self, first: int, end: int, team: Team) -> None:
        self.first, self.end, self.step = first + team.rank, end, team.size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.end, self.step))

    def __len__(self) -> int:
        return len(range(self.first, self.end, self.step))


class _State:
    """Network, optimiser and averaged weights, saved together so that a resumed run is the same run."""

    def __init__(self, trainee: Trainee, schedule: Schedule) -> None:
        self.network = trainee.network
        self.optimizer = torch.optim.AdamW(
            trainee.parameter_groups(schedule.learning_rate), weight_decay=schedule.weight_decay
        )
        for group in self.optimizer.param_groups:
            group["peak"] = group["lr"]
        self.average = {name: value.detach().clone().float() for name, value in self._floats()}
        self.step = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def _floats(self) -> list[tuple[str, Tensor]]:
        return [(n, v) for n, v in self.network.state_dict().items() if v.is_floating_point()]

    @torch.no_grad()
    def update_average(self, keep: float) -> None:
        current = self._floats()
        torch._foreach_lerp_([self.average[n] for n, _ in current], [v.float() for _, v in current], 1 - keep)

    def save(self, folder: Path, schedule: Schedule) -> None:
        tensors = {f"network.{n}": v for n, v in self.network.state_dict().items()}
        tensors |= {f"average.{n}": v for n, v in self.average.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        facts = {
            "step": self.step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "schedule": asdict(schedule),
        }
        tensors = {n: v.detach().cpu().contiguous().clone() for n, v in tensors.items()}
        with atomic_binary_file(folder / "state.safetensors") as file:
            file.write(save(tensors, {"facts": json.dumps(facts)}))

    def load(self, file: Path) -> None:
        with safe_open(file, framework="pt") as stored:
            facts = json.loads(stored.metadata()["facts"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = value
        self.network.load_state_dict(parts["network"])
        device = next(self.network.parameters()).device
        self.average = {n: v.to(device) for n, v in parts["average"].items()}
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, slot = name.split(".", 1)
            slots.setdefault(int(index), {})[slot] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.step, self.seconds, self.cpu_seconds = facts["step"], facts["seconds"], facts["cpu_seconds"]

    @torch.no_grad()
    def swap_average(self) -> None:
        """Exchanges the network's weights and the averaged ones; calling it twice changes nothing."""
        for name, value in self._floats():
            kept = value.clone()
            value.copy_(self.average[name])
            self.average[name].copy_(kept)


def train(
    trainee: Trainee,
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
    team: Team | None = None,
) -> bool:
    """Trains until ``schedule.steps`` or until the slice's time is over; goes on from ``output`` if it holds a state.

    Args:
        trainee: what is trained, already on its device.
        samples: numbered samples; sample i must depend on i alone.
        schedule: length and speed.
        output: folder for ``state.safetensors`` (resume), ``refiner.safetensors`` (averaged weights), ``loss.csv``
            and ``scores.csv``.
        minutes: stop cleanly after this long.
        workers: processes that prepare samples.
        autocast: run the forward pass in this precision.
        save_every: seconds between checkpoints.
        log_every: steps between lines in ``loss.csv``.
        evaluate_every: steps between scores, 0 for none.
        evaluate: scores the exported weights.
        say: where progress lines go.
        team: the processes that train together, each with its share of every batch; None for this one alone.

    Returns:
        whether training is complete.

    Raises:
        InputError: a batch cannot be shared out evenly.
        CheckpointError: the loss is no longer a number.
    """
    team = team or Team()
    if schedule.batch_size % team.size:
        raise InputError(
            f"a batch of {schedule.batch_size} cannot be shared out among {team.size} processes",
            remedy="give a --batch-size that is a multiple of them",
        )
    output.mkdir(parents=True, exist_ok=True)
    state = _State(trainee, schedule)
    if (output / "state.safetensors").exists():
        state.load(output / "state.safetensors")
        say(f"resumed at step {state.step}")
        if team.leads:
            for table in ("loss.csv", "scores.csv"):
                _forget_after(output / table, state.step)
    device = next(trainee.network.parameters()).device
    loader = DataLoader(
        samples,
        batch_size=schedule.batch_size // team.size,
        sampler=_From(state.step * schedule.batch_size, schedule.steps * schedule.batch_size, team),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    start, saved, before = time.monotonic(), time.monotonic(), (state.seconds, state.cpu_seconds)
    cpu_start = time.process_time()
    trainee.network.train()
    for batch in loader:
        for group in state.optimizer.param_groups:
            group["lr"] = group["peak"] * schedule.rate(state.step)
        over = minutes is not None and time.monotonic() - start > 60 * minutes
        terms, over = _step(trainee, state, batch, schedule, device, autocast, team, over)
        state.step += 1
        now = time.monotonic()
        state.seconds = before[0] + now - start
        state.cpu_seconds = before[1] + time.process_time() - cpu_start
        over = over or (team.size == 1 and minutes is not None and now - start > 60 * minutes)
        done = state.step >= schedule.steps
        if not team.leads:
            if over:
                break
            continue
        if state.step % log_every == 0:
            _log(output / "loss.csv", state, schedule, {n: float(v.detach()) for n, v in terms.items()}, say)
        if now - saved > save_every or over or done:
            state.save(output, schedule)
            _export(trainee, state, output, schedule)
            saved = now
        if evaluate is not None and (done or (evaluate_every and state.step % evaluate_every == 0)):
            _export(trainee, state, output, schedule)
            scores = evaluate(output / "refiner.safetensors")
            _append(output / "scores.csv", {"step": state.step, **scores})
            say("  ".join([f"step {state.step}", *(f"{name} {value:.2f}" for name, value in scores.items())]))
        if over:
            break
    return state.step >= schedule.steps


def _step(
    trainee: Trainee,
    state: _State,
    batch: tuple[Tensor, Tensor, Tensor],
    schedule: Schedule,
    device: torch.device,
    autocast: torch.dtype | None,
    team: Team,
    over: bool,
) -> tuple[dict[str, Tensor], bool]:
    """One step; gives the terms of the loss, and whether any member's time is over."""
    # a step's randomness depends on its number alone, so a resumed run draws what the whole run would have drawn
    torch.manual_seed((schedule.seed * 1_000_003 + state.step) * team.size + team.rank)
    pixels, masks, side = (part.to(device, non_blocking=True) for part in batch)
    image = jitter_colours(pixels.float()).contiguous(memory_format=torch.channels_last)
    masks = masks.float() / 255
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        terms = trainee.loss(image, masks[:, :1], masks[:, 1:], side)
    state.optimizer.zero_grad(set_to_none=True)
    terms["total"].backward()  # type: ignore[no-untyped-call]
    names = list(terms)
    facts = torch.stack([*(terms[name].detach().float() for name in names), terms["total"].new_tensor(over)])
    sums = team.average(trainee.network.parameters(), facts)
    if not torch.isfinite(sums).all():
        raise CheckpointError(
            f"the loss is no longer a number at step {state.step}",
            remedy="lower the learning rate or use fp32",
        )
    nn.utils.clip_grad_norm_(trainee.network.parameters(), schedule.clip)
    state.optimizer.step()
    state.update_average(schedule.keep(state.step))
    return dict(zip(names, sums[:-1] / team.size, strict=True)), bool(sums[-1] > 0)


def jitter_colours(image: Tensor) -> Tensor:
    """Random brightness, contrast, saturation and channel gains of each image: [B, 3, H, W] in [0, 255]."""
    batch = image.shape[0]

    def around_one(reach: float, *shape: int) -> Tensor:
        return 1 + reach * (2 * torch.rand(batch, *shape, device=image.device) - 1)

    gain = around_one(0.25, 1) * around_one(0.08, 3)  # [B, 3]
    contrast, saturation = around_one(0.25, 1), around_one(0.4, 1)  # [B, 1]
    # all of it is affine in the channels, so one product of matrices does it in a single pass over the pixels
    mean = (image.mean((2, 3)) * gain).mean(1, keepdim=True)  # [B, 1], after the gains
    grey = (1 - saturation) / 3
    mix = grey[:, :, None] + torch.diag_embed(saturation.expand(-1, 3))  # [B, 3, 3]
    mix = mix * (contrast * gain)[:, None, :]
    offset = ((1 - contrast) * mean)[:, :, None].expand(-1, 3, 1)
    mixed = torch.baddbmm(offset, mix, image.flatten(2))
    return mixed.clamp_(0, 255).view_as(image)


def _export(trainee: Trainee, state: _State, output: Path, schedule: Schedule) -> None:
    state.swap_average()
    try:
        trainee.export(
            output / "refiner.safetensors",
            {
                "step": state.step,
                "seconds": round(state.seconds),
                "cpu_seconds": round(state.cpu_seconds),
                "schedule": asdict(schedule),
            },
        )
    finally:
        state.swap_average()


def _log(
    file: Path, state: _State, schedule: Schedule, terms: dict[str, float], say: Callable[[str], None]
) -> None:
    row = {
        "step": state.step,
        "samples": state.step * schedule.batch_size,
        "seconds": round(state.seconds, 1),
        "cpu_seconds": round(state.cpu_seconds, 1),
        **{name: round(value, 5) for name, value in terms.items()},
    }
    _append(file, row)
    say(
        f"step {state.step}/{schedule.steps}  {state.seconds / 60:.1f} min  "
        + "  ".join(f"{name} {value:.3f}" for name, value in terms.items())
    )


def _forget_after(file: Path, step: int) -> None:
    """Takes out of a table what came after the state that was saved last: these steps are made again."""
    if not file.exists():
        return
    with file.open(newline="") as old:
        lines = [line for line in old if line.endswith("\n")]  # the last one may have been cut off
    if not lines:
        file.unlink()
        return
    header, *rows = lines
    column = header.rstrip().split(",").index("step")
    kept = [row for row in rows if int(row.split(",")[column]) <= step]
    with atomic_file(file) as new:
        new.writelines([header, *kept])


def _append(file: Path, row: dict[str, Any]) -> None:
    new = not file.exists()
    with file.open("a", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
