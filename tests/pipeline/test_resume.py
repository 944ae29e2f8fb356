"""The journal: an interrupted run is gone on with, and nobody can tell afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfiner_refine.errors import InputError, OutputError
from transfiner_refine.masks import MaskWindow
from transfiner_refine.pipeline import Interrupted, Summary, refine_files

TITLE = b"transfiner-refine journal 3\n"


def refine(job: Any, refiner: Any, **options: Any) -> Summary:
    options = {"workers": 0, **options}
    masks = options.pop("masks", "masks.json")
    return refine_files(job.folder / "images", job.folder / masks, job.output, refiner=refiner, **options)


def said(summary: Summary) -> list[str]:
    """The summary and the errors without the seconds."""
    return [re.sub(r" in [\d.]+ s \([\d.]+/s\)", "", line) for line in summary.lines()] + [
        str(error) for error in summary.errors
    ]


def stopping(quick_run: Any, after: int) -> Any:
    """A refiner during whose call number ``after`` somebody presses Ctrl-C."""

    class Stopping(quick_run.Stripes):  # type: ignore[misc]
        def refine_windows(self, *arguments: Any) -> list[MaskWindow]:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls > after:
                raise KeyboardInterrupt
            refined: list[MaskWindow] = super().refine_windows(*arguments)
            return refined

    return disguised(Stopping, quick_run)(batch_size=2)


def disguised(kind: Any, quick_run: Any) -> Any:
    """A class under the name of another, for a refiner that is handed over is known by that."""
    kind.__module__, kind.__qualname__ = quick_run.Stripes.__module__, quick_run.Stripes.__qualname__
    return kind


def interrupt(job: Any, quick_run: Any, after: int = 3, **options: Any) -> str:
    with pytest.raises(Interrupted) as stop:
        refine(job, stopping(quick_run, after), **options)
    return str(stop.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, make_job: Any, quick_run: Any) -> dict[str, Any]:
    """A job with faults of all kinds, its journal just before the end, and what an uninterrupted run gives."""
    job = make_job(tmp_path_factory.mktemp("finished") / "job")
    job.spoil()

    class Blocking(quick_run.Stripes):  # type: ignore[misc]
        def refine_windows(self, *arguments: Any) -> list[MaskWindow]:
            job.output.touch()  # somebody else's, which is not overwritten
            refined: list[MaskWindow] = super().refine_windows(*arguments)
            return refined

    with pytest.raises(OutputError, match=r"has appeared while the result was made; .* --resume to go on"):
        refine(job, disguised(Blocking, quick_run)())
    job.output.unlink()
    journal = job.journal.read_bytes()
    job.journal.unlink()
    summary = refine(job, quick_run.Stripes())
    found = {"job": job, "journal": journal, "said": said(summary), "output": job.output.read_bytes()}
    job.output.unlink()
    return found


def test_a_run_goes_on_where_ctrl_c_stopped_it(job: Any, quick_run: Any) -> None:
    job.spoil()
    whole = refine(job, quick_run.Stripes())
    output = job.output.read_bytes()
    job.output.unlink()
    text = interrupt(job, quick_run)
    assert text == "interrupted; 6 refined masks are kept, repeat the command with --resume to go on"
    assert job.names() == [".out.json.journal"]
    counting = quick_run.Stripes(batch_size=1)
    calls: list[int] = []
    counting.refine_windows = lambda *a: calls.append(1) or quick_run.Stripes.refine_windows(counting, *a)
    summary = refine(job, counting, resume=True)
    assert len(calls) == whole.refined - 6
    assert job.output.read_bytes() == output
    assert said(summary) == said(whole)
    assert job.names() == ["out.json"]


def test_a_resumed_run_has_the_batches_of_an_uninterrupted_one(job: Any, quick_run: Any) -> None:
    def remembering(after: int) -> Any:
        refiner = stopping(quick_run, after)
        refiner.batches = []
        original = refiner.refine_windows

        def remember(images: Any, masks: Any, image_index: Any) -> Any:
            refiner.batches.append([mask.values.shape for mask in masks])
            return original(images, masks, image_index)

        refiner.refine_windows, refiner.batch_size = remember, 4
        return refiner

    whole, first, second = remembering(99), remembering(3), remembering(99)
    refine(job, whole)
    with pytest.raises(Interrupted):
        refine(job, first, overwrite=True)
    # as if kill -9 had come in the middle of the third batch's masks
    content = job.journal.read_bytes()
    job.journal.write_bytes(content[: content.rindex(b"M[") + 20])
    refine(job, second, overwrite=True, resume=True)
    assert first.batches[:2] + second.batches == whole.batches


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1))
def test_wherever_the_journal_breaks_off_the_resumed_run_ends_as_an_uninterrupted_one(
    finished: dict[str, Any], quick_run: Any, share: float
) -> None:
    job = finished["job"]
    job.journal.write_bytes(finished["journal"][: round(share * len(finished["journal"]))])
    summary = refine(job, quick_run.Stripes(batch_size=3), resume=True)
    assert job.output.read_bytes() == finished["output"]
    assert said(summary) == finished["said"]
    assert job.names() == ["out.json"]
    job.output.unlink()


def test_a_journal_without_resume_is_refused_with_both_ways_out(job: Any, quick_run: Any) -> None:
    interrupt(job, quick_run)
    journal = job.journal.read_bytes()
    with pytest.raises(OutputError) as refusal:
        refine(job, quick_run.Stripes())
    assert str(refusal.value) == (
        f"{job.output}: an interrupted run has left .out.json.journal with 6 refined masks; "
        "go on with it by --resume, or start anew with --overwrite"
    )
    assert job.journal.read_bytes() == journal
    counting = quick_run.Stripes()
    assert refine(job, counting, overwrite=True).refined == len(job.records)
    assert job.names() == ["out.json"]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"min_area": 10}, "--min-area was 0 and is 10"),
        ({"score_threshold": 0.25}, "--score-threshold was none and is 0.25"),
        ({"categories": [1]}, "--category was all and is 1"),
        ({"max_image_pixels": 5000}, "--max-image-pixels was 400000000 and is 5000"),
        ({"polygon_tolerance": 0}, "--polygon-tolerance was 0.5 and is 0"),
        ({"polygons": "rle"}, "--polygons was keep and is rle"),
        ({"format": "coco-results"}, None),  # as it was recognised
        ({"keep_boxes": True, "strict": True, "workers": 1}, None),  # they change no mask
    ],
)
def test_a_journal_of_other_options_is_refused_by_name(
    job: Any, quick_run: Any, change: dict[str, Any], difference: str | None
) -> None:
    interrupt(job, quick_run)
    if difference is None:
        assert refine(job, quick_run.Stripes(), resume=True, **change).refined == len(job.records)
        return
    with pytest.raises(OutputError, match=re.escape(f"is of another run: {difference}; repeat the command")):
        refine(job, quick_run.Stripes(), resume=True, **change)
    assert job.names() == [".out.json.journal"]


def test_a_journal_of_other_masks_or_another_refiner_is_refused_by_name(job: Any, quick_run: Any) -> None:
    class Other(quick_run.Stripes):  # type: ignore[misc]
        pass

    interrupt(job, quick_run)
    (job.folder / "masks.json").write_text(json.dumps(job.records[:-1]))
    with pytest.raises(OutputError, match=r"--masks has changed, --weights was .*Stripes and is .*Other"):
        refine(job, Other(), resume=True)


def test_a_photo_that_was_replaced_meanwhile_is_refined_again(job: Any, quick_run: Any) -> None:
    interrupt(job, quick_run)
    first = job.folder / "images" / "1.png"
    first.write_bytes((job.folder / "images" / "7.png").read_bytes())
    refine(job, quick_run.Stripes(), resume=True)
    resumed = job.output.read_bytes()
    refine(job, quick_run.Stripes(), overwrite=True)
    assert job.output.read_bytes() == resumed


def test_resume_without_a_journal_starts_from_the_beginning(job: Any, quick_run: Any) -> None:
    assert refine(job, quick_run.Stripes(), resume=True).refined == len(job.records)


def test_resume_does_not_replace_an_output_of_somebody_else(job: Any, quick_run: Any) -> None:
    interrupt(job, quick_run)
    job.output.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        refine(job, quick_run.Stripes(), resume=True)
    assert job.output.read_text() == "mine"
    assert refine(job, quick_run.Stripes(), resume=True, overwrite=True).refined == len(job.records)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_is_damaged_in_the_journal_counts_as_not_written(
    finished: dict[str, Any], quick_run: Any, data: st.DataObject
) -> None:
    job, content = finished["job"], bytearray(finished["journal"])
    at = data.draw(st.integers(len(TITLE), len(content) - 1))
    length = data.draw(st.sampled_from([1, 5, 4000]))
    for place in range(at, min(at + length, len(content))):
        content[place] ^= data.draw(st.integers(1, 255)) if length == 1 else content[place] ^ 255
    job.journal.write_bytes(content + bytes(data.draw(st.sampled_from([0, 5000]))))
    summary = refine(job, quick_run.Stripes(batch_size=3), resume=True)
    assert job.output.read_bytes() == finished["output"]
    assert said(summary) == finished["said"]
    job.output.unlink()


def framed(*records: bytes) -> bytes:
    """A journal with right checksums."""
    return b"".join([TITLE, *(b"%08x%b\n" % (zlib.crc32(record), record) for record in records)])


COMMIT = b"C1.0"


@pytest.mark.parametrize(
    "records",
    [
        [b"H[]", COMMIT],
        [b"H{", COMMIT],
        [b'H{"--weights":5}', COMMIT],
        [b"H" + b"[" * 100_000, COMMIT],
        [b"C"],
        [b"X{}", COMMIT],
        [b"H{}", b"X", COMMIT],
        [b"H{}", b"X{}", COMMIT],
        [b"H{}", b"M", COMMIT],
        [b"H{}", b"M[]", COMMIT],
        [b"H{}", b"M[-1,5,false,0.5]", COMMIT],
        [b"H{}", b'M["x",5,false,0.5]', COMMIT],
        [b"H{}", b'M[1,5,false,"x"]', COMMIT],
        [b"H{}", b"K{}", COMMIT],
        [b"H{}", b"K[]", COMMIT],
        [b"H{}", b"K\xff", COMMIT],
        [b"H{}", b'K[1,"x",false,"y"]', COMMIT],
        [b"H{}", b'K[1,1e99,false,"y"]', COMMIT],
        [b"H{}", b'K[-1,5,false,"y"]', COMMIT],
        [b"H{}", b"K[1,5,false,5]", COMMIT],
        [b"H{}", b"F5", COMMIT],
        [b"H{}", b"F[[1],5,false,5,null,null,null,false,false]", COMMIT],
        [b"H{}", b'F[[1],5,false,"x",5,null,null,false,false]', COMMIT],
        [b"H{}", b'F[["y"],5,false,"x",null,null,null,false,false]', COMMIT],
        [b"H{}", b'F[[1],5,false,"x"]', COMMIT],
        [b"H{}", b"W5", COMMIT],
    ],
)
def test_a_journal_with_right_checksums_and_foreign_records_is_refused(
    job: Any, quick_run: Any, records: list[bytes]
) -> None:
    job.journal.write_bytes(framed(*records))
    with pytest.raises(OutputError, match="is no journal of this version; move the file away"):
        refine(job, quick_run.Stripes(), resume=True)
    assert job.journal.read_bytes() == framed(*records)


def test_a_mask_that_nobody_could_have_refined_is_refused(job: Any, quick_run: Any) -> None:
    interrupt(job, quick_run)
    records = [line[8:] for line in job.journal.read_bytes().splitlines()[1:]]
    job.journal.write_bytes(
        framed(*(re.sub(rb'"[^"]+"', b'"~"', each) if each[:1] == b"M" else each for each in records))
    )
    with pytest.raises(OutputError, match="is no journal of this version"):
        refine(job, quick_run.Stripes(), resume=True)
    assert not job.output.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize(
    ("masks", "change"), [("masks.json", {}), ("masks.json", {"to": "coco-panoptic"}), ("masks", {})]
)
def test_a_run_that_is_killed_when_its_output_is_there_can_be_resumed(
    job: Any, masks: str, change: dict[str, Any]
) -> None:
    if masks == "masks":
        job.as_folder()
    options = {"masks": masks, "output": "out" if masks == "masks" else "out.json", **change}
    whole = job.run(**options)
    assert (whole.returncode, job.names()[0][0]) == (0, "o"), whole.stderr
    wanted = job.contents()
    for path in [job.folder / name for name in job.names()]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    killed = job.run(**options, signal_at_the_end=9)
    assert killed.returncode == -9
    assert killed.stderr == "was written before: False\n"
    assert {name: content for name, content in job.contents().items() if ".journal" not in name} == wanted
    resumed = job.run(**options, resume=True, then=True)
    assert (resumed.returncode, resumed.stderr) == (0, "was written before: True\n")
    assert job.summary_of(resumed) == job.summary_of(whole)
    assert job.contents() == wanted


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="its file systems keep no notes")
@pytest.mark.parametrize("masks", ["masks.json", "masks"])
def test_a_run_that_is_killed_when_its_journal_is_gone_is_known_to_be_complete(job: Any, masks: str) -> None:
    try:
        os.setxattr(job.folder, "user.test", b"")
    except OSError:
        pytest.skip("this file system keeps no notes beside a file")
    job.as_folder()
    options = {"masks": masks, "output": "out"}
    assert job.run(**options).returncode == 0  # what a kill just before the exit leaves
    wanted = job.contents()
    again = job.run(**options, resume=True, delay=60)
    assert (again.returncode, again.stdout.splitlines()[1:]) == (0, ["Nothing to do: the run was complete."])
    assert job.contents() == wanted
    for change in ({"min_area": 5}, {"keep_boxes": True}, {"resume": False}):
        other = job.run(**{**options, "resume": True, **change})
        assert (other.returncode, "exists already" in other.stderr) == (1, True)
    output = job.folder / "out"
    (output if output.is_file() else output / "1_0.png").write_bytes(b"mine")
    edited = job.run(**options, resume=True)
    assert (edited.returncode, "exists already" in edited.stderr) == (1, True)
    assert ".out.journal" not in job.names()


def test_ctrl_c_in_what_follows_the_output_can_be_resumed(job: Any, quick_run: Any) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="21 refined masks are kept, repeat the command with --resume"):
        refine(job, quick_run.Stripes(), then=stop)
    output = job.output.read_bytes()
    calls: list[tuple[int, bool]] = []
    refine(
        job, stopping(quick_run, 0), resume=True, then=lambda *said: calls.append((said[0].refined, said[1]))
    )
    assert calls == [(21, True)]
    assert job.output.read_bytes() == output
    assert job.names() == ["out.json"]


def test_an_output_that_appears_during_the_run_is_not_overwritten(job: Any, quick_run: Any) -> None:
    class Meanwhile(quick_run.Stripes):  # type: ignore[misc]
        def refine_windows(self, *arguments: Any) -> list[MaskWindow]:
            job.output.write_text("mine")
            refined: list[MaskWindow] = super().refine_windows(*arguments)
            return refined

    kind = disguised(Meanwhile, quick_run)
    with pytest.raises(OutputError, match=r"out.json: has appeared .*; 21 refined masks are kept"):
        refine(job, kind())
    with pytest.raises(OutputError, match="exists already"):
        refine(job, kind(), resume=True)
    assert job.output.read_text() == "mine"
    assert refine(job, kind(), resume=True, overwrite=True).refined == 21
    assert job.output.read_text() != "mine"


def test_a_run_in_which_everything_passes_through_holds_little_back(
    make_job: Any, tmp_path: Path, quick_run: Any
) -> None:
    job = make_job(tmp_path / "job", images=200, masks_an_image=1)
    grown: list[int] = []

    class Watching(quick_run.Stripes):  # type: ignore[misc]
        def refine_windows(self, *arguments: Any) -> list[MaskWindow]:
            grown.append(job.journal.stat().st_size)
            refined: list[MaskWindow] = super().refine_windows(*arguments)
            return refined

    for record in job.records[:-1]:
        record["iscrowd"] = 1
    (job.folder / "masks.json").write_text(json.dumps(job.records))
    refine(job, Watching())
    assert grown[0] > 100 * 60


def test_what_killed_runs_left_half_written_is_removed(job: Any, quick_run: Any) -> None:
    (job.folder / ".out.json.999999999.part").write_text("half")
    (job.folder / ".out.json.1.part").write_text("of a process that lives")
    refine(job, quick_run.Stripes())
    assert job.names() == [".out.json.1.part", "out.json"]


def test_strict_stops_at_the_first_fault_and_can_be_resumed_when_it_is_mended(
    job: Any, quick_run: Any
) -> None:
    whole = refine(job, quick_run.Stripes())
    output = job.output.read_bytes()
    job.output.unlink()
    photo = job.folder / "images" / "6.png"
    pixels = photo.read_bytes()
    photo.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"6\.png: .*; replace the file; \d+ refined masks are kept, repeat"):
        refine(job, quick_run.Stripes(batch_size=1), strict=True)
    assert job.names() == [".out.json.journal"]
    photo.write_bytes(pixels)
    summary = refine(job, quick_run.Stripes(), strict=True, resume=True)
    assert (said(summary), job.output.read_bytes()) == (said(whole), output)


def test_two_runs_on_one_output_are_refused(job: Any, quick_run: Any) -> None:
    class Meanwhile(quick_run.Stripes):  # type: ignore[misc]
        def refine_windows(self, *arguments: Any) -> list[MaskWindow]:
            with pytest.raises(OutputError, match="another run is writing it; wait for that one"):
                refine(job, quick_run.Stripes(), overwrite=True)
            assert job.run(resume=True).stderr.endswith("wait for that one, or give another --output\n")
            refined: list[MaskWindow] = super().refine_windows(*arguments)
            return refined

    assert refine(job, Meanwhile(batch_size=100)).refined == len(job.records)


def test_a_file_of_that_name_that_is_no_journal_is_left_alone(job: Any, quick_run: Any) -> None:
    job.journal.write_text("my notes")
    with pytest.raises(OutputError, match="is no journal of this version; move the file away"):
        refine(job, quick_run.Stripes(), overwrite=True)
    assert job.journal.read_text() == "my notes"


def test_an_empty_or_torn_beginning_counts_as_no_journal(job: Any, quick_run: Any) -> None:
    for beginning in (
        b"",
        b"transfiner-ref",
        TITLE,
        TITLE + b"\x09",
    ):
        job.journal.write_bytes(beginning)
        refine(job, quick_run.Stripes(), overwrite=job.output.exists())
        assert job.names() == ["out.json"]


def test_a_folder_of_masks_is_resumed_too(job: Any, quick_run: Any) -> None:
    job.as_folder()
    job.output = job.folder / "out"
    refine(job, quick_run.Stripes(), masks="masks")
    whole = {path.name: path.read_bytes() for path in job.output.iterdir()}
    assert len(whole) == len(job.records)
    for path in job.output.iterdir():
        path.unlink()
    job.output.rmdir()
    interrupt(job, quick_run, masks="masks")
    refine(job, quick_run.Stripes(), masks="masks", resume=True)
    assert {path.name: path.read_bytes() for path in job.output.iterdir()} == whole
    interrupt(job, quick_run, masks="masks", overwrite=True)
    (job.folder / "masks" / "1_0.png").touch()
    with pytest.raises(OutputError, match="--masks has changed"):
        refine(job, quick_run.Stripes(), masks="masks", overwrite=True, resume=True)


def test_a_run_with_nothing_done_leaves_nothing(job: Any, quick_run: Any) -> None:
    assert interrupt(job, quick_run, after=0) == "interrupted"
    assert job.names() == []
