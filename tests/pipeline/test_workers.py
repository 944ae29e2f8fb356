"""Images prepared in processes: the same results, nothing lost whatever becomes of the processes, nothing left over."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transfiner_refine.errors import MaskRefineError
from transfiner_refine.formats import RecordFault, open_source
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.masks import MaskWindow
from transfiner_refine.pipeline import Selection, refine_files, refine_source
from transfiner_refine.pipeline.prepare import PreparedImage, Preparing
from transfiner_refine.pipeline.workers import WorkerPool

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
    assert f"3.png: decoding it crashed the decoder process ({how}" in str(error)
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
    with WorkerPool(1, Preparing(Selection(), 10**6)) as pool:
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


@pytest.fixture
def soft(tmp_path: Path) -> list[ImageRecord]:
    """Images with soft masks whose arrays begin nowhere in particular."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    random = np.random.default_rng(0)
    for number in range(1, 31):
        pixels = random.integers(0, 256, (201, 301, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        for mask in range(3):
            Image.fromarray(pixels[..., mask]).save(tmp_path / "masks" / f"{number}_{mask}.png")
    return list(open_source(tmp_path / "masks", tmp_path / "images"))  # type: ignore[arg-type]


def check(image: ImageRecord, prepared: PreparedImage) -> None:
    assert image.path is not None
    assert prepared.pixels is not None
    with Image.open(image.path) as opened:
        expected = np.asarray(opened)
    assert np.array_equal(prepared.pixels, expected)
    for number, chosen in enumerate(prepared.chosen):
        assert isinstance(chosen.coarse_mask, MaskWindow)
        values = chosen.coarse_mask.values
        assert values.flags.aligned
        assert np.array_equal(values, expected[..., number].astype(np.float32) / 255)


def memory_files(process: str) -> int:
    links = [link.readlink() for link in Path(f"/proc/{process}/fd").iterdir() if link.is_symlink()]
    return sum("memfd:transfiner" in str(link) for link in links)


@pytest.mark.skipif(sys.platform != "linux", reason="memory without a name is Linux's")
def test_images_that_are_held_on_to_stay_what_they_are_and_the_others_take_no_memory(
    soft: list[ImageRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transfiner_refine.pipeline.messages._MOST_MAPPED", 20)  # the others are copied
    with WorkerPool(2, Preparing(Selection(), 10**6)) as pool:
        held = [pool.submit(image).result() for image in soft]
        assert 40 <= memory_files("self") < 50  # two descriptors each, and some for later
        for worker in pool.processes:
            assert memory_files(str(worker)) <= 1
    for image, prepared in zip(soft, held, strict=True):
        check(image, prepared)
    view = held[0].pixels[7:, ::2]  # type: ignore[index]
    kept = view.copy()
    del held, prepared
    gc.collect()
    assert memory_files("self") == 2
    assert np.array_equal(view, kept)


@pytest.mark.skipif(sys.platform != "linux", reason="memory without a name is Linux's")
def test_where_memory_is_refused_arrays_come_with_the_answer(soft: list[ImageRecord]) -> None:
    with WorkerPool(1, Preparing(Selection(), 10**6)) as pool:
        check(soft[0], pool.submit(soft[0]).result())
        (worker,) = pool.processes
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (1000, 1000))
        check(soft[1], pool.submit(soft[1]).result())
        assert pool.processes == [worker]
    gc.collect()
    assert memory_files("self") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_load_neither_pytorch_nor_opencv(job: Any) -> None:
    images = list(open_source(job.folder / "masks.json", job.folder / "images").unread())  # type: ignore[attr-defined]
    with WorkerPool(1, Preparing(Selection(), 10**6)) as pool:
        assert len(pool.submit(images[0]).result().chosen) == 3
        (worker,) = pool.processes
        loaded = Path(f"/proc/{worker}/maps").read_text()
    assert "numpy" in loaded
    assert not [name for name in ("torch", "cv2", "pycocotools", "scipy") if f"/{name}" in loaded]


def test_an_image_with_very_many_masks_goes_to_a_worker_and_comes_back(make_job: Any, tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", images=1)
    (job.folder / "masks.json").write_text(json.dumps(job.records * 2000))
    (image,) = open_source(job.folder / "masks.json", job.folder / "images").unread()  # type: ignore[attr-defined]
    with WorkerPool(1, Preparing(Selection(), 10**6)) as pool:
        waiting = [pool.submit(image) for _ in range(3)]
        assert [len(each.result().chosen) for each in waiting] == [6000] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process")
@pytest.mark.parametrize("workers", [0, 1])
def test_too_few_open_files_are_the_systems_fault_and_the_run_can_be_resumed(
    job: Any, workers: int, quick_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, summary, _ = job.whole()

    class Closing(quick_run.Stripes):  # type: ignore[misc]
        def refine_windows(self, *arguments: Any) -> list[MaskWindow]:
            if pools:
                resource.prlimit(pools[0].processes[0], resource.RLIMIT_NOFILE, (0, 0))
            elif not opened:
                opened.append(1)
                monkeypatch.setattr(Path, "open", refuse)
            refined: list[MaskWindow] = super().refine_windows(*arguments)
            return refined

    def refuse(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if path.suffix == ".png":
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return original(path, *arguments, **keywords)

    original = Path.open
    pools: list[WorkerPool] = []
    opened: list[int] = []

    class Watched(WorkerPool):
        def __enter__(self) -> WorkerPool:
            if workers:
                pools.append(self)
            return super().__enter__()

    monkeypatch.setattr("transfiner_refine.pipeline.run.WorkerPool", Watched)
    monkeypatch.setattr("transfiner_refine.pipeline.run._BATCHES_AHEAD", 0)
    Closing.__module__, Closing.__qualname__ = quick_run.Stripes.__module__, quick_run.Stripes.__qualname__
    where = (job.folder / "images", job.folder / "masks.json", job.output)
    with pytest.raises(MaskRefineError) as stopped:
        refine_files(*where, refiner=Closing(1), workers=workers)
    assert re.fullmatch(
        r"the system refused \(Too many open files\), which is no fault of the input; raise the limit of open files "
        r"\(ulimit -n\); \d+ refined masks? (is|are) kept, repeat the command with --resume to go on",
        str(stopped.value),
    )
    assert job.names() == [".out.json.journal"]
    monkeypatch.undo()
    found = refine_files(*where, refiner=quick_run.Stripes(), workers=workers, resume=True)
    assert job.output.read_bytes() == wanted
    assert found.lines()[1:] == summary[1:]
