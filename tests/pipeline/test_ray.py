"""A run on a real Ray on this machine: the output of one process, whatever becomes of the actors."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from transfiner_refine.pipeline import refine_files

ray = pytest.importorskip("ray", reason="the ray extra is not installed")
pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def refiners() -> Iterator[Any]:
    """Refiners that actors can import, and a Ray of two cores."""
    here = str(Path(__file__).parent)
    sys.path.insert(0, here)
    path = f"{here}:{Path(__file__).parents[2]}"
    environment = {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}}
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment,
        object_store_memory=100 << 20,
    )  # fmt: skip
    yield importlib.import_module("crashing")
    ray.shutdown()
    for name in ("crashing", "quick_run"):
        sys.modules.pop(name, None)
    sys.path.remove(here)


def refine(job: Any, refiner: Any, **options: Any) -> Any:
    options = {"workers": 0, "executor": "ray", "gpus": 2, **options}
    return refine_files(
        job.folder / "images", job.folder / "masks.json", job.output, refiner=refiner, **options
    )


def said(summary: Any) -> tuple[list[str], str]:
    return summary.lines()[1:], "".join(f"{error}\n" for error in summary.errors)


def one_colour(job: Any, number: int) -> Path:
    path: Path = job.folder / "images" / f"{number}.png"
    Image.new("RGB", (60, 40), (7, 7, 7)).save(path)
    return path


def test_where_no_cluster_runs_that_is_one_line(job: Any) -> None:
    if subprocess.run(["pgrep", "-f", "gcs_server"], check=False, stdout=subprocess.DEVNULL).returncode == 0:
        pytest.skip("a Ray cluster runs on this machine")
    command = [
        sys.executable, "-c", "from transfiner_refine.cli import main; main()", "refine", "--executor", "ray",
        "--images", str(job.folder / "images"), "--masks", str(job.folder / "masks.json"),
        "--output", str(job.output),
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "there is no Ray cluster at 'auto'" in done.stderr


def test_the_output_is_byte_for_byte_that_of_one_process_though_an_actor_is_killed_midway(
    make_job: Any, tmp_path: Path, refiners: Any
) -> None:
    job = make_job(tmp_path / "job", images=20)
    job.spoil()
    one_colour(job, 12)
    output, summary, errors = job.whole()
    found = refine(job, refiners.Crashing(spares=str(tmp_path / "killed")))
    assert (tmp_path / "killed").exists()
    assert job.output.read_bytes() == output
    assert said(found) == (summary[1:], errors)
    assert job.names() == ["out.json"]


def test_an_image_that_kills_every_actor_is_named_and_all_others_are_refined(
    make_job: Any, tmp_path: Path, refiners: Any
) -> None:
    job = make_job(tmp_path / "job", images=7)
    path = one_colour(job, 4)
    output, *_ = job.whole()
    summary = refine(job, refiners.Crashing())
    assert (summary.refined, summary.failed, summary.images_failed, summary.exit_code) == (18, 3, 1, 1)
    assert f"{path}: refining it crashed the process (" in str(summary.errors[0])
    found, wanted = json.loads(job.output.read_text()), json.loads(output)
    assert found[:9] + found[12:] == wanted[:9] + wanted[12:]
    assert found[9:12] == job.records[9:12]


def test_what_one_machine_began_ray_completes(make_job: Any, tmp_path: Path, refiners: Any) -> None:
    job = make_job(tmp_path / "job", images=7)
    output, *_ = job.whole()

    class Stopping(refiners.Crashing):  # type: ignore[misc]
        calls = 0

        def refine_windows(self, *given: Any) -> Any:
            Stopping.calls += 1
            if Stopping.calls == 3:
                raise KeyboardInterrupt
            return super().refine_windows(*given)

    Stopping.__module__, Stopping.__qualname__ = "crashing", "Crashing"
    with pytest.raises(KeyboardInterrupt):
        refine(job, Stopping(), executor="local", gpus=None)
    refine(job, refiners.Crashing(), resume=True)
    assert job.output.read_bytes() == output


def test_the_real_command_on_a_ray_of_its_own(tmp_path: Path) -> None:
    command = [
        sys.executable, "-c", "from transfiner_refine.cli import main; main()", "refine", "--device", "cpu",
        "--images", str(EXAMPLES / "images"), "--masks", str(EXAMPLES / "detections.json"),
        "--image-info", str(EXAMPLES / "image_info.json"),
    ]  # fmt: skip
    subprocess.run([*command, "--output", str(tmp_path / "one.json")], check=True)
    ray_options = ["--executor", "ray", "--address", "local", "--gpus", "2"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "ray.json"), *ray_options],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "Refined 6 of 6" in done.stdout
    assert (tmp_path / "ray.json").read_bytes() == (tmp_path / "one.json").read_bytes()
