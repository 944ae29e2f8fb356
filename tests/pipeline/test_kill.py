"""``kill -9`` and Ctrl-C, sent to real processes at any moment."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")


def children_of(process: int) -> set[int]:
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    return {child for child, parent in pairs if parent == process}


def is_alive(process: int) -> bool:
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False
    )
    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def without_seconds(text: str) -> str:
    return re.sub(r"pid \d+\n| in [\d.]+ s \([\d.]+/s\)", "", text)


def kill_and_resume(job: Any, kills: int, **options: Any) -> None:
    """Kills as often as asked for, each time when the journal has grown, and compares the end."""
    job.spoil()
    output, summary, errors = job.whole()
    grown = 0
    for _ in range(kills):
        process = job.start(delay=0.03, batch_size=1, resume=True, **options)
        wait_for(lambda: process.poll() is not None or size(job.journal) > grown)  # noqa: B023
        process.kill()
        process.communicate()
        assert process.returncode == -9
        grown = size(job.journal)
    last = job.run(resume=True, **options)
    assert job.output.read_bytes() == output
    assert job.summary_of(last) == summary
    assert last.stderr == errors
    assert job.names() == ["out.json"]


def size(journal: Path) -> int:
    return journal.stat().st_size if journal.exists() else 0


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(job: Any) -> None:
    kill_and_resume(job, 3)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_may_be_killed_thirty_times(make_job: Any, tmp_path: Path, workers: int) -> None:
    job = make_job(tmp_path / "job", images=30)
    kill_and_resume(job, 30, workers=workers)


def test_neither_ctrl_c_nor_kill_leaves_a_worker_behind(job: Any) -> None:
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        process = job.start(delay=0.2, batch_size=1, workers=2, overwrite=True)
        wait_for(lambda process=process: len(children_of(process.pid)) == 2)
        wait_for(lambda: size(job.journal) > 800)
        workers = children_of(process.pid)
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == code
        wait_for(lambda workers=workers: not any(map(is_alive, workers)), 10)
        if number == signal.SIGINT:
            assert re.fullmatch(
                r"interrupted; \d+ refined masks? (is|are) kept, repeat .* --resume to go on\n", errors
            )
        assert job.names() == [".out.json.journal"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_kill_leaves_no_shared_memory_behind(make_job: Any, tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", size=(200, 300))
    process = job.start(delay=0.2, batch_size=1, workers=2)
    wait_for(lambda: len(children_of(process.pid)) == 2)
    wait_for(lambda: shared_memory(process.pid))
    family = [process.pid, *children_of(process.pid)]
    shared = set().union(*map(shared_memory, family))
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(is_alive, family)), 10)
    # it never had a name, so it lives only as long as somebody has it open
    processes = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
    assert shared
    assert not [each for each in processes if shared_memory(each) & shared]


def shared_memory(process: int) -> set[int]:
    """The shared memory of runs that a process has open or mapped, by its number in the system."""
    try:
        maps = Path(f"/proc/{process}/maps").read_text().splitlines()
        return {int(line.split()[4]) for line in maps if "memfd:transfiner" in line}
    except OSError:  # it has just ended
        return set()


def test_ctrl_c_in_a_terminal_reaches_the_workers_too_and_they_stay_silent(job: Any) -> None:
    command = job.command(delay=0.2, batch_size=1, workers=2)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: size(job.journal) > 800)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.count("\n")) == (130, 1)


def real_command(folder: Path, records: list[Any], *more: str) -> list[str]:
    """The command on example images, to out.json in the folder."""
    (folder / "masks.json").write_text(json.dumps(records))
    return [
        sys.executable, "-c", "from transfiner_refine.cli import main; main()", "refine",
        "--images", str(EXAMPLES / "images"), "--masks", str(folder / "masks.json"),
        "--image-info", str(EXAMPLES / "image_info.json"), "--output", str(folder / "out.json"),
        "--device", "cpu", "--batch-size", "1", "--resume", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_the_command_is_killed_in_its_last_second_and_resumed_to_the_end(tmp_path: Path) -> None:
    output, report = tmp_path / "out.json", tmp_path / "report"
    records = json.loads((EXAMPLES / "detections.json").read_text())[:2]
    command = real_command(tmp_path, records, "--report", str(report))
    whole = subprocess.run(command, capture_output=True, text=True, check=True)
    wanted = output.read_bytes()
    pages = {path.relative_to(report): path.read_bytes() for path in report.rglob("*") if path.is_file()}
    killed = []
    for delay in (0, 0, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8):
        output.unlink()
        shutil.rmtree(report)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(output.exists, 120)
        time.sleep(delay)
        process.kill()
        process.communicate()
        killed.append(process.returncode == -9)
        if killed[-1]:  # else it was done
            last = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (last.returncode, last.stderr) == (0, "")
            assert without_seconds(last.stdout) == without_seconds(whole.stdout)
        assert output.read_bytes() == wanted
        found = {path.relative_to(report): path.read_bytes() for path in report.rglob("*") if path.is_file()}
        assert found == pages
        assert sorted(path.name for path in tmp_path.iterdir()) == ["masks.json", "out.json", "report"]
    assert any(killed)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="its file systems keep no notes")
def test_the_command_is_killed_between_removing_its_journal_and_its_exit(tmp_path: Path) -> None:
    records = json.loads((EXAMPLES / "detections.json").read_text())[:1]
    command = real_command(tmp_path, records, "--report", str(tmp_path / "report"))
    killing = "import os; os._exit = lambda _: os.kill(os.getpid(), 9); " + command[2]
    assert subprocess.run([*command[:2], killing, *command[3:]], check=False).returncode == -9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks.json", "out.json", "report"]
    output = (tmp_path / "out.json").read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == "Nothing to do: the run was complete.\n"
    assert (tmp_path / "out.json").read_bytes() == output


@pytest.mark.slow
def test_the_command_is_killed_at_any_moment_and_resumed_byte_for_byte(tmp_path: Path) -> None:
    records = json.loads((EXAMPLES / "detections.json").read_text())
    records += [{**record, "score": record["score"] / 2} for record in records] * 2
    output, journal = tmp_path / "out.json", tmp_path / ".out.json.journal"
    command = real_command(tmp_path, records)
    start = time.monotonic()
    whole = subprocess.run(command, capture_output=True, text=True, check=True)
    duration = time.monotonic() - start
    wanted = output.read_bytes()
    output.unlink()
    journals = set()
    for step in range(12):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(duration * (0.4 + 0.06 * step))
        process.kill()
        process.communicate()
        journals.add(journal.stat().st_size if journal.exists() else None)
        if output.exists():
            break
    assert len(journals) > 2
    if not output.exists() or journal.exists():
        last = subprocess.run(command, capture_output=True, text=True, check=True)
        assert without_seconds(last.stdout) == without_seconds(whole.stdout)
    assert output.read_bytes() == wanted
    assert not journal.exists()
