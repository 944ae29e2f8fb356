"""Images prepared in processes: the same results, and nothing lost whatever becomes of the processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from transfiner_refine.formats import RecordFault, open_source
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.pipeline import Selection, refine_source
from transfiner_refine.pipeline.decoding import DecodingPool
from transfiner_refine.pipeline.prepare import Preparing

CRASHING = '''
import os
from dataclasses import dataclass
from pathlib import Path
from transfiner_refine.formats.records import EncodedMask


@dataclass(frozen=True)
class CrashingMask:
    """Takes the process down that decodes it, as a hostile file does with a bad decoder."""

    inner: EncodedMask
    spares: Path | None = None  # crash only once, then leave this file behind

    @property
    def size(self):
        return self.inner.size

    def decode(self):
        if self.spares is None or not self.spares.exists():
            if self.spares is not None:
                self.spares.touch()
            os.abort()
        return self.inner.decode()
'''


class Changed:
    """A source with other masks in some images."""

    def __init__(self, job: Any, change: Any) -> None:
        self._source = open_source(job.folder / "masks.json", job.folder / "images")
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __iter__(self) -> Iterator[ImageRecord | RecordFault]:
        for item in self._source:
            assert isinstance(item, ImageRecord)
            instances = tuple(replace(each, mask=self._change(item, each.mask)) for each in item.instances)
            yield replace(item, instances=instances)


@pytest.fixture
def crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "crashing_masks.py").write_text(CRASHING)
    monkeypatch.syspath_prepend(tmp_path)
    import crashing_masks  # type: ignore[import-not-found]

    yield crashing_masks.CrashingMask
    del sys.modules["crashing_masks"]


def masks(job: Any, quick_run: Any, workers: int, source: Any = None) -> dict[int, Any]:
    source = source or open_source(job.folder / "masks.json", job.folder / "images")
    return dict(refine_source(source, quick_run.Stripes(), workers=workers).masks)


def test_the_number_of_workers_changes_nothing(make_job: Any, tmp_path: Path, quick_run: Any) -> None:
    job = make_job(tmp_path / "job", images=12)
    expected = masks(job, quick_run, 0)
    assert len(expected) == 36
    assert masks(job, quick_run, 1) == masks(job, quick_run, 3) == expected


def test_an_image_that_crashes_its_decoder_is_named_and_the_others_are_refined(
    job: Any, quick_run: Any, crashing: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    source = Changed(job, lambda image, mask: crashing(mask) if image.name.endswith(" 3") else mask)
    outcome = refine_source(source, quick_run.Stripes(), workers=2)  # type: ignore[arg-type]
    summary = outcome.summary
    assert (summary.refined, summary.failed, summary.images_failed) == (18, 3, 1)
    (error,) = summary.errors
    how = "exit code" if sys.platform == "win32" else "SIGABRT"
    assert f"3.png: the process that decodes it dies of it ({how}" in str(error)
    assert capfd.readouterr().err == ""


def test_a_worker_that_is_killed_by_chance_costs_no_image(
    job: Any, quick_run: Any, crashing: Any, tmp_path: Path
) -> None:
    expected = masks(job, quick_run, 0)
    source = Changed(job, lambda _, mask: crashing(mask, tmp_path / "crashed"))
    assert masks(job, quick_run, 1, source) == expected
    assert (tmp_path / "crashed").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="has no kill -9")
def test_a_worker_that_is_killed_while_idle_is_replaced(job: Any, crashing: Any) -> None:
    del crashing  # brings the module search path, which workers take over
    records = list(open_source(job.folder / "masks.json", job.folder / "images"))
    with DecodingPool(1, Preparing(Selection(), 10**6)) as pool:
        first = pool.submit(records[0]).result()  # type: ignore[arg-type]
        (worker,) = pool.processes
        os.kill(worker, signal.SIGKILL)
        second = pool.submit(records[1]).result()  # type: ignore[arg-type]
        assert pool.processes != [worker]
    assert len(first.chosen) == len(second.chosen) == 3


def test_masks_that_cannot_be_handed_over_are_decoded_where_they_are(job: Any, quick_run: Any) -> None:
    class Local:  # a class that no other process can find
        def __init__(self, mask: Any) -> None:
            self.size, self.decode = mask.size, mask.decode

    expected = masks(job, quick_run, 0)
    assert masks(job, quick_run, 1, Changed(job, lambda _, mask: Local(mask))) == expected


def test_where_no_process_can_be_started_threads_do_the_work(
    job: Any, quick_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = masks(job, quick_run, 0)
    monkeypatch.setattr(sys, "executable", str(job.folder / "no such program"))
    assert masks(job, quick_run, 2) == expected


def test_a_mask_whose_decoder_raises_anything_is_a_fault_of_its_own(job: Any, quick_run: Any) -> None:
    class Odd:
        size = (40, 60)

        def decode(self) -> Any:
            raise ZeroDivisionError("by chance")

    source = Changed(job, lambda image, mask: Odd() if image.name.endswith(" 2") else mask)
    summary = refine_source(source, quick_run.Stripes(), workers=0).summary  # type: ignore[arg-type]
    assert (summary.refined, summary.failed) == (18, 3)
    assert "2.png: record 3: cannot be decoded (ZeroDivisionError: by chance)" in str(summary.errors[0])
