"""Training in several processes: what they agree on, and that a run of two is one run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from transfiner_refine.training.team import Team

_MEMBER = """
import json, sys, torch
from torch import nn
from transfiner_refine.training.team import Team

used, one_sided, unused = (nn.Parameter(torch.zeros(3)) for _ in range(3))
with Team.join() as team:
    used.grad = torch.full((3,), 1.0 + team.rank)
    if team.rank == 1:
        one_sided.grad = torch.full((3,), 4.0)
    sums = team.average([used, one_sided, unused], torch.tensor([10.0 * (team.rank + 1), float(team.rank)]))
json.dump(
    [used.grad.tolist(), one_sided.grad.tolist(), unused.grad is None, sums.tolist()],
    open(f"{sys.argv[1]}/{team.rank}.json", "w"),
)
"""


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=300, check=False)


def test_a_process_alone_is_a_team_of_one_and_keeps_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    team = Team.join()
    assert team == Team(0, 1, 0)
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    assert team.average([parameter], torch.tensor([5.0])).tolist() == [5.0]
    assert parameter.grad.tolist() == [1.0, 2.0]
    assert team.device("auto") == "auto"


@pytest.mark.slow
def test_members_get_the_mean_of_their_gradients_and_the_sum_of_their_facts(tmp_path: Path) -> None:
    script = tmp_path / "member.py"
    script.write_text(_MEMBER)
    done = torchrun(str(script), str(tmp_path))
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        used, one_sided, unused, sums = json.loads((tmp_path / f"{rank}.json").read_text())
        assert used == [1.5] * 3
        assert one_sided == [2.0] * 3  # who has no gradient counts as zero
        assert unused
        assert sums == [30.0, 1.0]


@pytest.mark.slow
def test_two_processes_train_one_network_and_resume_it(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--batch-size", "4", "--workers", "0", "--device", "cpu", "--precision", "fp32"]
    arguments = ["--dataset", str(dataset), "--output", str(run), *options]
    program = str(Path(sys.executable).with_name("transfiner-refine"))
    # the lone --, for without it torchrun takes --start for an option of its own
    command = ["--no-python", "--", program, "train", "--start", "lite", *arguments]
    first = torchrun(*command, "--steps", "2", "--threads", "1")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("2 processes") == 1  # only the first member talks
    assert first.stdout.count("done: ") == 1
    again = torchrun(*command, "--steps", "3", "--threads", "1")
    assert again.returncode == 0, again.stderr
    assert "resumed at step 2" in again.stdout
    assert all(bool(value.isfinite().all()) for value in load_file(run / "state.safetensors").values())


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_out_is_refused(dataset: Path, tmp_path: Path) -> None:
    command = str(Path(sys.executable).with_name("transfiner-refine"))
    options = [
        "--batch-size",
        "3",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--steps",
        "1",
    ]
    done = torchrun(
        "--no-python", command, "train", "--dataset", str(dataset), "--output", str(tmp_path), *options
    )
    assert done.returncode != 0
    assert "a batch of 3 cannot be shared out among 2 processes" in done.stderr
