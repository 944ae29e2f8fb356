"""benchmarks/device_check.py on a CPU, at sizes that only show that every check runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HANGING = """
import sys, time
sys.path.insert(0, sys.argv.pop(1))
import device_check
def hang(run):
    "Never ends."
    time.sleep(60)
device_check.GRACE, device_check.CHECKS["masks"] = 1.0, (hang, 0.5)
device_check.main()
"""


def run(*command: str, to: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    command = (sys.executable, *command, "--device", "cpu", "--small", "--json", str(to))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done, json.loads(to.read_text())


@pytest.mark.slow
def test_every_check_runs_without_a_gpu_and_what_needs_one_says_so(tmp_path: Path) -> None:
    done, found = run(str(BENCHMARKS / "device_check.py"), "--graphs", to=tmp_path / "check.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(found) == [
        "machine", "masks", "stages", "run", "variants", "profile", "memory", "graphs", "host"
    ]  # fmt: skip
    fp32 = found["masks"]["generated, fp32"]
    assert fp32["differ, mean"] < 0.1
    assert fp32["changed by refining"] > 1
    assert "DeviceError" in done.stdout  # fp16 on a CPU
    assert [cell["masks"] for cell in found["stages"].values()] == [4, 4]
    assert [each["failed"] for each in found["run"].values()] == [0]
    assert set(found["variants"]) == {"as it is", "canvas 128"}
    assert not any("error" in cell for cell in (*found["stages"].values(), *found["variants"].values()))
    assert "CUDA graphs need CUDA" in done.stdout
    assert set(found["host"]) == {"100 px", "225 px", "450 px"}


@pytest.mark.slow
def test_a_check_that_hangs_is_given_up_and_the_others_run_in_a_new_process(tmp_path: Path) -> None:
    only = ("--only", "masks", "--only", "memory")
    done, found = run("-c", HANGING, str(BENCHMARKS), *only, to=tmp_path / "check.json")
    assert done.returncode == 1
    assert found["masks"] == {"failed": "took too long"}
    assert list(found["memory"]) == ["112, 2 RoIs"]


@pytest.mark.slow
def test_what_does_not_fit_into_the_time_is_skipped_by_name(tmp_path: Path) -> None:
    script = str(BENCHMARKS / "device_check.py")
    done, found = run(
        script, "--only", "masks", "--only", "host", "--minutes", "0.1", to=tmp_path / "check.json"
    )
    assert done.returncode == 0, done.stderr
    assert "skipped for time: host" in done.stdout
    assert found["masks"] == found["host"] == {"skipped": "time"}
