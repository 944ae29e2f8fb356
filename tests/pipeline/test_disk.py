"""Disks that are full or read-only, and writing that is interrupted: one line, the journal kept, no half output."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if not (sys.platform == "linux" and IS_ROOT):
        pytest.skip("only root may mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    # lazily: a process of an interrupted run may still be on its way out
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fills the disk up to ``leave`` bytes."""
    filler = disk / "filler"
    state = os.statvfs(disk)
    filler.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - leave)))
    return filler


@pytest.mark.parametrize("leave", [pytest.param(0, marks=pytest.mark.slow), 8192])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_space(
    make_job: Any, small_disk: Path, tmp_path: Path, leave: int
) -> None:
    job = make_job(tmp_path / "job", images=20)
    wanted, summary, _ = job.whole()
    filler = fill(small_disk, leave)
    output = os.path.relpath(small_disk / "out.json", job.folder)
    full = job.run(output=output)
    assert (full.returncode, full.stderr.count("\n")) == (1, 1)
    assert "No space left on device" in full.stderr
    assert not (small_disk / "out.json").exists()
    assert not list(small_disk.glob(".*.part"))
    if leave:
        assert re.search(
            r"\d+ refined masks are kept, repeat the command with --resume to go on", full.stderr
        )
    filler.unlink()
    done = job.run(output=output, resume=True)
    assert done.returncode == 0
    assert job.summary_of(done)[:-1] == summary[:-1]  # the last line says where
    assert (small_disk / "out.json").read_bytes() == wanted
    assert sorted(path.name for path in small_disk.iterdir()) == ["out.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
def test_a_limit_on_the_size_of_files_is_like_a_full_disk(make_job: Any, tmp_path: Path) -> None:
    import resource

    job = make_job(tmp_path / "job", images=20)
    wanted, _, _ = job.whole()
    for limit in (2000, len(wanted) - 100):  # met by the journal, by the output
        limited = subprocess.run(
            job.command(resume=True),
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert (limited.returncode, limited.stderr.count("\n")) == (1, 1), limited.stderr
        assert "cannot be written (File too large)" in limited.stderr
        assert job.names() == [".out.json.journal"]
    assert job.run(resume=True).returncode == 0
    assert job.output.read_bytes() == wanted


@pytest.mark.skipif(sys.platform == "win32" or IS_ROOT, reason="needs a folder that refuses its owner")
def test_a_read_only_output_is_known_before_the_work(job: Any) -> None:
    (job.folder / "closed").mkdir(mode=0o555)
    refused = job.run(output="closed/out.json")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "is not writable; give another --output" in refused.stderr


def test_a_read_only_file_system_is_one_line(job: Any, small_disk: Path) -> None:
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    refused = job.run(output=os.path.relpath(small_disk / "out.json", job.folder))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert re.search(r"is not writable|Read-only file system", refused.stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_in_the_middle_of_writing_leaves_no_half_output(
    make_job: Any, tmp_path: Path, number: signal.Signals
) -> None:
    job = make_job(tmp_path / "job", images=3, masks_an_image=1)
    wanted, summary, _ = job.whole()
    process = job.run(signal_in_writing=int(number))
    assert not job.output.exists()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert (
            process.stderr
            == "interrupted; 3 refined masks are kept, repeat the command with --resume to go on\n"
        )
        assert job.names() == [".out.json.journal"]
    resumed = job.run(resume=True)
    assert job.output.read_bytes() == wanted
    assert job.summary_of(resumed) == summary
    assert job.names() == ["out.json"]
