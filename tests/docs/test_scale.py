"""The examples of docs/scale.md do what they say, run as printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / "scale.md").read_text(), re.MULTILINE | re.DOTALL
)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Two images under the names that the page uses, and the command."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "bin").mkdir()
    records = json.loads((EXAMPLES / "detections.json").read_text())
    for number, name in ((2, "coffee.jpg"), (3, "rocket.jpg")):
        shutil.copy(EXAMPLES / "images" / name, tmp_path / "photos" / f"{number}.jpg")
    kept = [record for record in records if record["image_id"] in (2, 3)]
    (tmp_path / "detections.json").write_text(json.dumps(kept))
    command = tmp_path / "bin" / "transfiner-refine"
    command.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from transfiner_refine.cli import main; main()" "$@"\n'
    )
    command.chmod(0o755)
    return tmp_path


def run(work: Path, script: str, **environment: str) -> None:
    path = f"{work / 'bin'}:{os.environ['PATH']}"
    found = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)} | environment
    subprocess.run(["bash", "-euc", script], cwd=work, env=found, check=True)


def block(language: str, containing: str) -> str:
    (found,) = (text for kind, text in BLOCKS if kind == language and containing in text)
    return found


@pytest.mark.slow
def test_processes_and_the_shards_of_slurm_and_of_kubernetes_give_the_output_of_one_run(work: Path) -> None:
    run(work, "transfiner-refine refine --images photos --masks detections.json --output whole.json")
    for number in ("1", "2"):
        slurm = {"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_COUNT": "2"}
        run(work, block("bash", "SBATCH"), **slurm)
    run(work, block("bash", "merge shards"))
    whole = (work / "whole.json").read_bytes()
    assert (work / "refined.json").read_bytes() == whole
    (work / "refined.json").unlink()
    run(work, block("bash", "--gpus all"))
    assert (work / "refined.json").read_bytes() == whole
    (work / "refined.json").unlink()
    shutil.rmtree(work / "shards")
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    container = yaml.safe_load(block("yaml", "kind: Job"))["spec"]["template"]["spec"]["containers"][0]
    (script,) = container["args"]
    for index in ("0", "1"):
        run(work, script, JOB_COMPLETION_INDEX=index, SHARDS="2")
    run(work, block("bash", "merge shards"))
    assert (work / "refined.json").read_bytes() == whole
