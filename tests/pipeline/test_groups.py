"""A run in several processes, each with a refiner: the output of one, whatever becomes of the processes."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from transfiner_refine.errors import CheckpointError, DeviceError, InputError, MaskRefineError
from transfiner_refine.pipeline import refine_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills processes and reads their state")


@pytest.fixture
def refiners(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Refiners that other processes can import."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    yield importlib.import_module("crashing")
    for name in ("crashing", "quick_run"):
        del sys.modules[name]


def refine(job: Any, refiner: Any, **options: Any) -> Any:
    options = {"workers": 0, "gpus": 2, **options}
    masks = options.pop("masks", "masks.json")
    return refine_files(job.folder / "images", job.folder / masks, job.output, refiner=refiner, **options)


def said(summary: Any) -> tuple[list[str], str]:
    return summary.lines()[1:], "".join(f"{error}\n" for error in summary.errors)


@pytest.mark.parametrize(("gpus", "workers"), [("2", 1), pytest.param(1, 0, marks=pytest.mark.slow)])
def test_the_output_and_the_summary_are_those_of_one_process(
    job: Any, refiners: Any, gpus: Any, workers: int
) -> None:
    job.spoil()
    output, summary, errors = job.whole()
    found = refine(job, refiners.Crashing(), gpus=gpus, workers=workers)
    assert job.output.read_bytes() == output
    assert said(found) == (summary[1:], errors)
    assert job.names() == ["out.json"]


def test_a_folder_of_masks_comes_out_the_same(job: Any, refiners: Any) -> None:
    job.as_folder()
    job.output = job.folder / "out"
    refine(job, refiners.Crashing(), masks="masks", gpus=None)
    wanted = {file.name: file.read_bytes() for file in job.output.iterdir()}
    refine(job, refiners.Crashing(), masks="masks", overwrite=True)
    assert {file.name: file.read_bytes() for file in job.output.iterdir()} == wanted


def poison(job: Any, number: int) -> Path:
    from PIL import Image

    path: Path = job.folder / "images" / f"{number}.png"
    Image.new("RGB", (60, 40), (7, 7, 7)).save(path)
    return path


def test_a_process_that_dies_is_replaced_and_its_images_are_tried_again(
    job: Any, refiners: Any, tmp_path: Path
) -> None:
    poison(job, 4)
    output, summary, _ = job.whole()
    found = refine(job, refiners.Crashing(spares=str(tmp_path / "spared")))
    assert (tmp_path / "spared").exists()
    assert said(found) == (summary[1:], "")
    assert job.output.read_bytes() == output


@pytest.mark.parametrize(
    "batch_size", [4, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 100))]
)
def test_an_image_that_kills_every_process_is_named_and_all_others_are_refined(
    job: Any, refiners: Any, batch_size: int
) -> None:
    path = poison(job, 4)
    output, *_ = job.whole()
    summary = refine(job, refiners.Crashing(batch_size))
    assert (summary.refined, summary.failed, summary.images_failed, summary.exit_code) == (18, 3, 1, 1)
    assert [str(error) for error in summary.errors] == [
        f"{path}: refining it crashed the process (SIGKILL); replace the file, or leave out its records"
    ]
    found, wanted = json.loads(job.output.read_text()), json.loads(output)
    assert [found[i] for i in range(21) if i not in (9, 10, 11)] == [
        wanted[i] for i in range(21) if i not in (9, 10, 11)
    ]
    assert found[9:12] == job.records[9:12]


def test_an_error_of_the_refiner_ends_the_run_as_it_is(job: Any, refiners: Any) -> None:
    with pytest.raises(RuntimeError, match="the device is gone"):
        refine(job, refiners.Broken())
    assert job.names() == []


def test_what_no_other_process_can_be_given_is_refused(job: Any) -> None:
    class Local:
        batch_size = 4

    elsewhere = type("Elsewhere", (Local,), {"__module__": __name__, "__qualname__": "Elsewhere"})
    globals()["Elsewhere"] = elsewhere  # found here, but not by other processes
    for refiner in (Local(), elsewhere()):
        with pytest.raises(
            InputError, match=r"cannot be handed to other processes .*; define it in a module"
        ):
            refine(job, refiner)


def test_weights_that_cannot_be_loaded_are_said_as_ever(job: Any, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"none")
    with pytest.raises(CheckpointError):
        refine(job, None, weights=tmp_path / "weights.safetensors")
    assert job.names() == []


def test_more_than_there_is_or_no_number_is_refused(job: Any, refiners: Any) -> None:
    for gpus, device, match in (
        (10**6, "auto", r"1000000 processes, but this machine has \d+"),
        ("some", "auto", "'some' is no number of GPUs"),
        (0, "auto", "0 is no number of GPUs|'0' is no number"),
        (2, "cuda:1", "contradict each other; leave one out"),
    ):
        with pytest.raises(DeviceError, match=match):
            refine(job, refiners.Crashing(), gpus=gpus, device=device)


def test_strict_stops_at_the_first_fault_and_can_be_resumed_in_one_process(job: Any, refiners: Any) -> None:
    job.spoil()
    output, *_ = job.whole()
    with pytest.raises(MaskRefineError):
        refine(job, refiners.Crashing(), strict=True)
    refine(job, refiners.Crashing(), gpus=None, resume=True)
    assert job.output.read_bytes() == output


def test_kill_and_resume_with_another_number_of_processes(make_job: Any, tmp_path: Path) -> None:
    from tests.pipeline.test_kill import children_of, is_alive, size, wait_for

    job = make_job(tmp_path / "job", images=20)
    job.spoil()
    output, summary, errors = job.whole()
    for gpus in (2, 1):
        process = job.start(delay=0.05, batch_size=2, gpus=gpus, resume=True)
        grown = size(job.journal)
        wait_for(
            lambda process=process, grown=grown: process.poll() is not None or size(job.journal) > grown + 900
        )
        children = children_of(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -9
        wait_for(lambda children=children: not any(map(is_alive, children)), 10)
    last = job.run(resume=True, gpus=2, workers=1)
    assert job.output.read_bytes() == output
    assert job.summary_of(last) == summary
    assert last.stderr == errors
    assert job.names() == ["out.json"]


@pytest.mark.slow
def test_the_real_command_on_two_groups_of_cores_gives_the_output_of_one_process(tmp_path: Path) -> None:
    import subprocess

    examples = Path(__file__).parents[2] / "examples"
    command = [
        sys.executable, "-c", "from transfiner_refine.cli import main; main()", "refine", "--device", "cpu",
        "--images", str(examples / "images"), "--masks", str(examples / "detections.json"),
        "--image-info", str(examples / "image_info.json"),
    ]  # fmt: skip
    subprocess.run([*command, "--output", str(tmp_path / "one.json")], check=True)
    subprocess.run([*command, "--output", str(tmp_path / "two.json"), "--gpus", "2"], check=True)
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()


def test_ctrl_c_keeps_what_is_done_and_leaves_no_process_behind(make_job: Any, tmp_path: Path) -> None:
    from tests.pipeline.test_kill import children_of, is_alive, size, wait_for

    job = make_job(tmp_path / "job", images=20)
    output, *_ = job.whole()
    process = job.start(delay=0.1, batch_size=2, gpus=2)
    wait_for(lambda: process.poll() is not None or size(job.journal) > 1500)
    children = children_of(process.pid)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.startswith("interrupted; ")
    assert errors.endswith("repeat the command with --resume to go on\n")
    wait_for(lambda: not any(map(is_alive, children)), 10)
    assert job.run(resume=True).returncode == 0
    assert job.output.read_bytes() == output
