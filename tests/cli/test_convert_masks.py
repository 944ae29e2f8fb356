"""``transfiner-refine convert-masks`` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pycocotools.coco import COCO

from transfiner_refine.cli import main
from transfiner_refine.cli.options import FORMAT_NAMES
from transfiner_refine.formats import Mask
from transfiner_refine.formats.convert import convert_masks
from transfiner_refine.masks import MaskWindow

SIZE = (20, 30)


def rle(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    mask = Mask.from_window(MaskWindow(np.ones((height, width), bool), x, y, SIZE))
    return {"size": list(SIZE), "counts": mask.counts}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three overlapping detections in two images."""
    records = [
        {"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": rle(2, 2, 10, 10)},
        {"image_id": 1, "category_id": 3, "score": 0.9, "segmentation": rle(8, 2, 10, 10)},
        {"image_id": 2, "category_id": 4, "score": 0.7, "segmentation": rle(0, 0, 30, 20)},
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(records))
    return path


def convert(masks: Path, output: Path, *options: str | Path) -> Result:
    arguments = ["convert-masks", "--masks", masks, "--output", output, *options]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_results_become_annotations_that_pycocotools_reads(results: Path, tmp_path: Path) -> None:
    result = convert(results, tmp_path / "out.json", "--to", "coco-annotations")
    assert result.exit_code == 0, result.output
    assert result.stdout == "Wrote 3 of 3 instances in 2 images, from coco-results to coco-annotations.\n"
    assert len(COCO(tmp_path / "out.json").anns) == 3


def test_overlaps_are_counted_where_a_pixel_holds_one_id(results: Path, tmp_path: Path) -> None:
    result = convert(results, tmp_path / "out.json", "--to", "coco-panoptic")
    assert result.exit_code == 0, result.output
    assert "Overlaps resolved, one id a pixel: 40 pixels." in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "000000000001.png",
        "000000000002.png",
    ]


def test_an_instance_that_is_covered_wholly_is_named(results: Path, tmp_path: Path) -> None:
    records = json.loads(results.read_text())
    records.append({**records[2], "score": 0.1, "segmentation": rle(3, 3, 4, 4)})
    results.write_text(json.dumps(records))
    result = convert(results, tmp_path / "out.json", "--to", "coco-panoptic")
    assert result.exit_code == 1
    assert "Wrote 3 of 4 instances in 2 images" in result.stdout
    assert "image id 2, record 3: is not in the output, for others cover it" in result.stderr


def test_what_cannot_be_read_is_named_and_the_rest_written(results: Path, tmp_path: Path) -> None:
    records = [*json.loads(results.read_text()), {"image_id": 1}]
    results.write_text(json.dumps(records))
    result = convert(results, tmp_path / "out.jsonl", "--to", "coco-results-jsonl")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"transfiner-refine: {results}: record 3: the segmentation is missing")
    assert result.stderr.count("\n") == 1
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("to", [(), ("--to", "coco-annotations")])
def test_strict_writes_nothing_for_one_bad_record(results: Path, tmp_path: Path, to: Any) -> None:
    results.write_text(json.dumps([*json.loads(results.read_text()), {"image_id": 1}]))
    result = convert(results, tmp_path / "out.json", *to, "--strict")
    assert result.exit_code == 1
    assert "record 3: the segmentation is missing" in result.stderr
    assert not (tmp_path / "out.json").exists()


def test_without_a_format_the_input_is_copied_byte_for_byte(results: Path, tmp_path: Path) -> None:
    results.write_text(results.read_text().replace("0.5", "0.50"))
    result = convert(results, tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out.json").read_bytes() == results.read_bytes()


def test_there_and_back_gives_the_same_masks_and_names(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "photos").mkdir()
    ids = np.zeros(SIZE, np.uint8)
    ids[2:8, 3:9], ids[10:18, 20:29] = 1, 2
    Image.fromarray(ids).save(tmp_path / "masks" / "street.png")
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "photos" / "street.jpg")
    there = convert(
        tmp_path / "masks", tmp_path / "out.json", "--to", "coco-results", "--images", tmp_path / "photos"
    )
    assert there.exit_code == 0, there.output
    back = convert(
        tmp_path / "out.json", tmp_path / "back", "--to", "label-maps", "--images", tmp_path / "photos"
    )
    assert back.exit_code == 0, back.output
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back" / "street.png")), ids)


def test_an_output_that_exists_is_kept_unless_it_may_be_replaced(results: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.png").write_text("mine")
    refused = convert(results, tmp_path / "out.json", "--to", "coco-panoptic")
    assert refused.exit_code == 1
    assert "out: exists already and is not empty; give another --output, or --overwrite" in refused.stderr
    assert not (tmp_path / "out.json").exists()
    allowed = convert(results, tmp_path / "out.json", "--to", "coco-panoptic", "--overwrite")
    assert allowed.exit_code == 0, allowed.output
    same = convert(results, results, "--to", "coco-annotations", "--overwrite")
    assert "results.json: is an input of this run" in same.stderr


def test_wrong_usage_has_its_own_exit_code(results: Path, tmp_path: Path) -> None:
    assert convert(results, tmp_path / "out", "--to", "coco").exit_code == 2
    assert "Traceback" not in convert(tmp_path / "none.json", tmp_path / "out").output
    assert convert(tmp_path / "none.json", tmp_path / "out").exit_code == 1


def test_quiet_says_nothing_but_errors(results: Path, tmp_path: Path) -> None:
    assert convert(results, tmp_path / "out.json", "--to", "coco-panoptic", "--quiet").output == ""


def test_the_help_lists_every_format_in_eighty_columns_and_at_once() -> None:
    text = CliRunner().invoke(main, ["convert-masks", "--help"], terminal_width=80).stdout
    assert max(len(line) for line in text.splitlines()) <= 80
    for name in FORMAT_NAMES:
        assert f"\n  {name} " in text
    code = "import sys; from transfiner_refine.cli.convert_masks import command; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_python_does_the_same_in_one_call(results: Path, tmp_path: Path) -> None:
    converted = convert_masks(results, tmp_path / "out.json", to="coco-panoptic")
    assert (converted.instances, converted.images, converted.overlap_pixels) == (3, 2, 40)
    assert (converted.errors, converted.exit_code) == ((), 0)
