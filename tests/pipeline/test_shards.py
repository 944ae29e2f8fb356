"""Shards of a run, and the one output that is merged from them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from transfiner_refine.errors import InputError, OutputError
from transfiner_refine.formats import open_source
from transfiner_refine.formats.convert import convert_masks
from transfiner_refine.formats.records import Format
from transfiner_refine.formats.registry import FORMATS
from transfiner_refine.pipeline import merge_shards, refine_files
from transfiner_refine.pipeline.shards import Shard, items_of


def refine(job: Any, quick_run: Any, output: Path, masks: str = "masks.json", **options: Any) -> Any:
    options = {"workers": 0, **options}
    where = job.folder / "images", job.folder / masks, output
    return refine_files(*where, refiner=quick_run.Stripes(), **options)


def refined_shards(job: Any, quick_run: Any, of: int, masks: str = "masks.json") -> list[Path]:
    """The shards' files, and the number of instances in all of them together."""
    shards = [job.folder / "shards" / f"{number}" for number in range(1, of + 1)]
    for number, shard in enumerate(shards, 1):
        refine(job, quick_run, shard, masks, shard=f"{number}/{of}")
    return shards


def files_of(output: Path) -> dict[str, bytes]:
    files = output.rglob("*") if output.is_dir() else [output]
    return {str(file.relative_to(output)): file.read_bytes() for file in files if file.is_file()}


def said(summary: Any) -> tuple[list[str], list[str], int]:
    lines = [line for line in summary.lines()[1:] if not line.startswith("Written: ")]
    return lines, [str(error) for error in summary.errors], summary.instances


@pytest.mark.parametrize("of", [1, 3, 20])
def test_merged_shards_are_byte_for_byte_one_run_faults_included(job: Any, quick_run: Any, of: int) -> None:
    job.spoil()
    whole = refine(job, quick_run, job.output)
    merged = merge_shards(refined_shards(job, quick_run, of), job.folder / "merged.json")
    assert (job.folder / "merged.json").read_bytes() == job.output.read_bytes()
    assert said(merged) == said(whole)
    assert job.names() == ["merged.json", "out.json", "shards"]


@pytest.mark.parametrize(
    "kind", [each for each in FORMATS if each.name != "mask-image"], ids=lambda kind: kind.name
)
def test_every_format_is_merged_byte_for_byte(
    make_job: Any, tmp_path: Path, quick_run: Any, kind: Format
) -> None:
    job = make_job(tmp_path / "job", masks_an_image=1)
    cars = [{**record, "category_id": 26} for record in job.records]  # in Cityscapes, 1 is no thing
    (job.folder / "masks.json").write_text(json.dumps(cars))
    ending = kind.suffixes[0] if kind.suffixes and not kind.is_folder else ""
    masks = f"in{ending}"
    convert_masks(job.folder / "masks.json", job.folder / masks, to=kind.name, images=job.folder / "images")
    options = {"format": kind.name}
    whole, merged = job.folder / f"whole{ending}", job.folder / f"merged{ending}"
    refine(job, quick_run, whole, masks, **options)
    shards = []
    for number in (1, 2, 3):
        shards.append(job.folder / f"{number}.shard")
        refine(job, quick_run, shards[-1], masks, shard=f"{number}/3", **options)
    merge_shards(shards, merged)
    assert files_of(merged) == files_of(whole)
    assert files_of(whole) != files_of(job.folder / masks)


def test_a_shard_is_the_same_images_however_the_records_are_ordered(job: Any) -> None:
    def names() -> list[set[str]]:
        source = open_source(job.folder / "masks.json", job.folder / "images")
        return [{item.name for _, item in items_of(source, Shard(i, 3))} for i in (1, 2, 3)]  # type: ignore[union-attr]

    before = names()
    random.Random(0).shuffle(job.records)
    (job.folder / "masks.json").write_text(json.dumps(job.records))
    assert names() == before
    assert sum(map(len, before)) == len(set().union(*before)) == 7


def test_a_missing_or_doubled_shard_is_refused_by_name(job: Any, quick_run: Any) -> None:
    shards = refined_shards(job, quick_run, 3)
    output = job.folder / "merged.json"
    with pytest.raises(InputError, match=r"shard 2/3 is missing, of 3; give them"):
        merge_shards([shards[0], shards[2]], output)
    with pytest.raises(InputError, match=r"shards 1/3, 3/3 are missing"):
        merge_shards([shards[1]], output)
    twice = job.folder / "twice"
    twice.write_bytes(shards[1].read_bytes())
    with pytest.raises(InputError, match=r"is shard 2/3, and so is .*; give each shard once"):
        merge_shards([*shards, twice], output)
    refine(job, quick_run, job.folder / "other", shard="1/2")
    with pytest.raises(
        InputError, match=r"is shard \d/\d, but .* is shard \d/\d; give shards of one division"
    ):
        merge_shards([*shards, job.folder / "other"], output)
    assert not output.exists()


def test_shards_of_another_run_or_other_masks_are_refused(job: Any, quick_run: Any) -> None:
    shards = refined_shards(job, quick_run, 2)
    refine(job, quick_run, shards[1], shard="2/2", min_area=7, overwrite=True)
    output = job.folder / "merged.json"
    with pytest.raises(
        InputError, match=r"another run than .*: --min-area was 0 and is 7; refine that shard again"
    ):
        merge_shards(shards, output)
    refine(job, quick_run, shards[1], shard="2/2", overwrite=True)
    (job.folder / "masks.json").write_text(json.dumps(job.records[::-1]))
    with pytest.raises(InputError, match=r"do not belong together: --masks has changed; give the masks"):
        merge_shards(shards, output)
    assert not output.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_damaged_or_torn_shard_is_refused(job: Any, quick_run: Any, share: float) -> None:
    shards = refined_shards(job, quick_run, 2)
    whole = shards[0].read_bytes()
    at = round(share * len(whole))
    for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
        shards[0].write_bytes(damaged)
        with pytest.raises(InputError, match=r"shards/1: is (no finished shard|damaged after record \d+)"):
            merge_shards(shards, job.folder / "merged.json")
    assert job.names() == ["shards"]


def test_an_image_that_its_shard_did_not_have_is_named(job: Any, quick_run: Any) -> None:
    image = job.folder / "images" / "4.png"
    content = image.read_bytes()
    image.unlink()
    shards = refined_shards(job, quick_run, 3)
    image.write_bytes(content)
    with pytest.raises(InputError, match=r"4.* was not refined in shard \d/3; .*; refine that shard again"):
        merge_shards(shards, job.folder / "merged.json")


def test_inputs_may_have_moved_meanwhile(job: Any, quick_run: Any, tmp_path: Path) -> None:
    wanted, *_ = job.whole()
    shards = refined_shards(job, quick_run, 3)
    moved = job.folder.rename(tmp_path / "moved")
    shards = [moved / shard.relative_to(job.folder) for shard in shards]
    with pytest.raises(InputError, match=r"masks.json"):
        merge_shards(shards, moved / "out.json")
    merge_shards([moved / "shards"], moved / "out.json", masks=moved / "masks.json", images=moved / "images")
    assert (moved / "out.json").read_bytes() == wanted


def test_a_killed_shard_is_resumed_and_another_shard_is_no_way_on(job: Any) -> None:
    wanted, *_ = job.whole()
    killed = job.run(output="a", shard="1/2", signal_in_writing=9)
    assert killed.returncode == -9
    other = job.run(output="a", shard="2/2", resume=True)
    assert "--shard was 1/2 and is 2/2" in other.stderr
    assert job.run(output="a", shard="1/2", resume=True).returncode == 0
    assert job.run(output="b", shard="2/2").returncode == 0
    merge_shards([job.folder / "b", job.folder / "a"], job.output)
    assert job.output.read_bytes() == wanted


def test_merging_writes_over_nothing_unasked_and_may_be_killed(job: Any, quick_run: Any) -> None:
    wanted, *_ = job.whole()
    shards = refined_shards(job, quick_run, 2)
    job.output.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        merge_shards(shards, job.output)
    with pytest.raises(OutputError, match="is an input of this run"):
        merge_shards(shards, shards[0], overwrite=True)
    code = (
        "import os, sys; from transfiner_refine.pipeline import merge_shards\n"
        "os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        "merge_shards([sys.argv[1]], sys.argv[2], overwrite=True)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(job.folder / "shards"), str(job.output)], check=False
    )
    assert killed.returncode == -9
    assert job.output.read_text() == "mine"
    job.output.unlink()
    merge_shards(shards, job.output)
    assert job.output.read_bytes() == wanted
    assert job.names() == ["out.json", "shards"]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused(job: Any, quick_run: Any, text: str) -> None:
    with pytest.raises(InputError, match=r"is no shard; give I/N with I from 1 to N"):
        refine(job, quick_run, job.output, shard=text)


def test_a_dry_run_counts_the_shard(job: Any, quick_run: Any) -> None:
    found = [refine(job, quick_run, job.output, shard=f"{n}/3", dry_run=True) for n in (1, 2, 3)]
    assert sum(each.instances for each in found) == 21
    assert sum(each.images for each in found) == 7
