"""A training run and its folder: what it was made from, the state it goes on from, weights, tables and the curve."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.optim.swa_utils import AveragedModel

from transfiner_refine._version import __version__
from transfiner_refine.errors import CheckpointError, InputError, short
from transfiner_refine.output import atomic_binary_file, atomic_file
from transfiner_refine.training.schedule import Schedule, TrainableModel

__all__ = ["Run", "draw_curve", "read_record"]

_UNREADABLE = (OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError)
_REMEDY = "give another --output, or delete the file to start anew"
_NUMBERS = ("step", "seconds", "cpu_seconds", "losses", "scores", "best")  # of the state, beside the tensors


class Run:
    """Model, optimiser, averaged weights and log, saved together so that a resumed run is the same run.

    Args:
        made_from: facts that a run cannot change half way, by name: data, starting weights, precision; those of the
            schedule, the version and the number of processes are added.
    """

    def __init__(
        self, model: TrainableModel, schedule: Schedule, output: Path, made_from: Mapping[str, Any]
    ) -> None:
        self.model, self.schedule, self.output = model, schedule, output
        self.rank, self.size = 0, 1
        if distributed.is_initialized():
            self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        facts = {"version": __version__, "processes": self.size, **made_from, **asdict(schedule)}
        self.made_from = json.loads(json.dumps(facts))
        self.optimizer = torch.optim.AdamW(
            model.parameter_groups(schedule.learning_rate), weight_decay=schedule.weight_decay
        )
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.average = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)
        self.step, self.seconds, self.cpu_seconds = 0, 0.0, 0.0
        self.losses: list[dict[str, float]] = []
        self.scores: list[dict[str, float]] = []
        self.best: list[float] = []  # step and mean score of the best weights so far

    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], _: Any) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), 1 - self.schedule.keep(self.step))

    def open(self) -> bool:
        """Goes on from what the folder holds, if it holds a run; gives whether that is finished.

        Raises:
            InputError: the run was made from something else.
            CheckpointError: its state is damaged, or of another network or version.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        record, file = read_record(self.output), self.output / "state.pt"
        for older in (self.output / "state.safetensors", file):
            if older.exists() and not record:
                raise CheckpointError("the run is of an earlier version", file=older, remedy=_REMEDY)
        was = record.get("made_from", self.made_from)
        changed = [key for key in {**was, **self.made_from} if was.get(key) != self.made_from.get(key)]
        if changed:
            both = {
                key: [short(facts[key]) if key in facts else "not there" for facts in (was, self.made_from)]
                for key in changed
            }
            listed = [f"{key.replace('_', ' ')} {old}, now {new}" for key, (old, new) in both.items()][:3]
            listed += [f"and {len(changed) - 3} more"] * (len(changed) > 3)
            reason, remedy = (
                f"the run was made with {'; '.join(listed)}",
                "give another --output, or the same",
            )
            remedy = "give another --output, or the options as they were"
            raise InputError(reason, file=self.output, remedy=remedy)
        if record.get("finished"):
            return True
        if file.exists():
            self._load(file)
        if self.rank == 0:
            self.write_tables()
            self._write_record(finished=False)
        return False

    def _load(self, file: Path) -> None:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            for name in ("model", "average", "optimizer"):
                getattr(self, name).load_state_dict(state.pop(name))
            for name in _NUMBERS:
                setattr(self, name, state.pop(name))
        except _UNREADABLE as error:
            first = str(error).partition("\n")[0]
            reason = f"the run cannot go on from it ({first})"
            raise CheckpointError(reason, file=file, remedy=_REMEDY) from error

    def save(self) -> None:
        """Writes ``state.pt``, from which the run goes on, and ``refiner.safetensors``, the averaged weights."""
        state = {name: getattr(self, name) for name in _NUMBERS}
        for name in ("model", "average", "optimizer"):
            state[name] = getattr(self, name).state_dict()
        with atomic_binary_file(self.output / "state.pt") as file:
            torch.save(state, file)
        self.export()

    @contextmanager
    def kept_on_errors(self) -> Iterator[None]:
        """Saves the steps that were made where an error ends the run; errors come between changes of the weights."""
        begin = self.step
        try:
            yield
        except Exception:
            if self.rank == 0 and self.step > begin:
                self.save()
            raise

    def finish(self) -> None:
        """Writes the weights; the state, many times as large, has done its work and goes."""
        self.export()
        self._write_record(finished=True)
        (self.output / "state.pt").unlink(missing_ok=True)

    def export(self, name: str = "refiner.safetensors") -> Path:
        about = {"step": self.step, "seconds": round(self.seconds), "cpu_seconds": round(self.cpu_seconds)}
        averaged = self.average.module
        assert isinstance(averaged, TrainableModel)
        averaged.export(self.output / name, about | {"schedule": asdict(self.schedule)})
        return self.output / name

    def log(self, terms: Mapping[str, float], rate: float) -> None:
        """Adds a line to the table of losses."""
        row: dict[str, float] = {"step": self.step, "samples": self.step * self.schedule.batch_size}
        row |= {"seconds": round(self.seconds, 1), "cpu_seconds": round(self.cpu_seconds, 1)}
        row["learning_rate"] = float(f"{rate:.4g}")
        self.losses.append(row | {name: round(value, 5) for name, value in terms.items()})
        self.write_tables()

    def add_scores(self, scores: Mapping[str, float]) -> bool:
        """Adds a line to the table of scores; the weights with the best mean score are kept, which is told."""
        self.scores.append({"step": self.step, **scores})
        self.write_tables()
        mean = float(np.mean(list(scores.values())))
        if self.best and mean <= self.best[1]:
            return False
        self.best = [self.step, mean]
        self.export("best.safetensors")
        return True

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

    def _write_record(self, *, finished: bool) -> None:
        record = {"made_from": self.made_from, "finished": finished, "step": self.step, "best": self.best}
        with atomic_file(self.output / "run.json") as file:
            json.dump(record, file, indent=1)


def read_record(output: Path) -> dict[str, Any]:
    """What ``run.json`` says of the run in a folder; nothing where there is none. Raises CheckpointError if damaged."""
    try:
        found = json.loads((output / "run.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot be read ({error})", file=output / "run.json", remedy=_REMEDY
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("made_from"), dict):
        raise CheckpointError("is no record of a run", file=output / "run.json", remedy=_REMEDY)
    return found


def draw_curve(output: Path) -> None:
    """Draws ``loss.csv`` and ``scores.csv`` of a run as ``curve.png``; does nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    files = [file for name in ("loss.csv", "scores.csv") if (file := output / name).exists()]
    figure = Figure(figsize=(5.5 * len(files), 4), layout="constrained")
    for number, file in enumerate(files, 1):
        with file.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        panel, is_loss = figure.add_subplot(1, len(files), number), file.name == "loss.csv"
        unshown = {"step", "samples", "seconds", "cpu_seconds", "learning_rate"}
        for name in [name for name in rows[0] if name not in unshown]:
            values = [float(row[name]) for row in rows]
            means = [float(np.mean(values[max(0, i - 9) : i + 1])) for i in range(len(values))]
            label = name.replace("$", r"\$")  # or it would be a formula
            steps = [int(row["step"]) for row in rows]
            panel.plot(steps, means if is_loss else values, marker="" if is_loss else ".", label=label)
        panel.set(xlabel="step", ylabel="loss (running mean of 10 lines)" if is_loss else "gain, points")
        if is_loss:
            panel.set_yscale("log")
            for axis in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
                axis("{x:g}")  # not 6×10⁻¹
        panel.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize="small", ncols=3, frameon=False)
    if files:
        figure.savefig(output / "curve.png", dpi=110)
