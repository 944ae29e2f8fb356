"""``transfiner-refine evaluate`` as a user meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from pycocotools import mask as codec

from transfiner_refine.cli import main

pytest.importorskip("faster_coco_eval", reason="the eval extra is not installed")


def rle(mask: NDArray[np.uint8]) -> dict[str, Any]:
    encoded = codec.encode(np.asfortranarray(mask))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Six discs in three images and a crowd; before, each is shifted by 6 pixels, after by 1."""
    truth: list[dict[str, Any]] = []
    results: dict[str, list[dict[str, Any]]] = {"before": [], "results": []}
    for number in range(6):
        disc = np.zeros((150, 200), np.uint8)
        cv2.circle(disc, (60 + 10 * number, 70), 24 + 4 * number, 1, -1)
        place = {"image_id": 1 + number // 2, "category_id": 1 + number % 2}
        area = int(disc.sum())
        truth.append(place | {"id": number, "segmentation": rle(disc), "area": area, "iscrowd": 0})
        for name, shift in (("before", 6), ("results", 1)):
            mask = np.roll(disc, shift, 1)
            results[name].append(place | {"segmentation": rle(mask), "score": 0.9 - number / 10})
    truth.append(
        {"id": 6, "image_id": 1, "category_id": 1, "segmentation": rle(disc), "area": area, "iscrowd": 1}
    )
    contents: dict[str, Any] = {
        "annotations": {
            "images": [{"id": image, "height": 150, "width": 200} for image in (1, 2, 3)],
            "annotations": truth,
            "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "a very long name of a class"}],
        },
        "match": [{"annotation_id": number} for number in range(6)],
        **results,
    }
    paths = {}
    for name, content in contents.items():
        paths[name] = tmp_path / f"{name}.json"
        paths[name].write_text(json.dumps(content))
    return paths


def evaluate(files: dict[str, Path], *options: str | Path, only: tuple[str, ...] | None = None) -> Result:
    """Runs the command on the files (or only some of them)."""
    arguments = ["evaluate"]
    for name in only or ("annotations", "results", "before", "match"):
        arguments += [f"--{name}", str(files[name])]
    return CliRunner().invoke(main, [*arguments, *map(str, options)])


def test_the_tables_show_what_was_gained_in_eighty_columns(files: dict[str, Path]) -> None:
    result = evaluate(files, "--per-class")
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert "annotations.json (3 images, 6 instances and 1 crowd region)" in result.stdout
    assert "results.json (6 detections)" in result.stdout
    assert re.search(
        r"all +6 +7\d\.\d → 9\d\.\d +\+\d+\.\d \[\+\d+\.\d, \+\d+\.\d\] +100 % / 0 % / 0 %", result.stdout
    )
    assert re.search(r"AP +\d+\.\d +\d+\.\d +\+\d+\.\d", result.stdout)
    assert re.search(r"cup +3 ", result.stdout)
    assert "a very lon…" in result.stdout


def test_json_has_the_numbers_as_shares(files: dict[str, Path], tmp_path: Path) -> None:
    assert evaluate(files, "--json", tmp_path / "out.json", "--per-class").exit_code == 0
    data = json.loads((tmp_path / "out.json").read_text())
    assert Path(data["annotations"]).name == "annotations.json"
    assert (data["images"], data["instances"], data["crowds"], data["detections"]) == (3, 6, 1, 6)
    assert data["matched"]["by"] == "match file"
    overall = data["matched"]["sizes"]["all"]
    assert overall["count"] == 6
    assert 0.7 < overall["before"]["iou"] < overall["after"]["iou"] < 1
    assert overall["better"] == 1
    assert (
        data["average_precision"]["before"]["mask"]["AP"] < data["average_precision"]["after"]["mask"]["AP"]
    )
    assert data["average_precision"]["after"]["mask"]["APs"] is None  # no small instance: null, not nan
    assert {row["name"] for row in data["classes"]} == {"cup", "a very long name of a class"}


def test_markdown_has_the_same_numbers_as_the_terminal(files: dict[str, Path], tmp_path: Path) -> None:
    result = evaluate(files, "--markdown", tmp_path / "out.md")
    markdown = (tmp_path / "out.md").read_text()
    assert "annotations.json (3 images, 6 instances and 1 crowd region)" in markdown
    assert "| --- | ---: |" in markdown
    numbers = r"[+-]?\d+\.\d"
    assert re.findall(numbers, markdown) == re.findall(numbers, result.stdout)


def test_results_can_be_scored_alone(files: dict[str, Path]) -> None:
    result = evaluate(files, only=("annotations", "results"))
    assert result.exit_code == 0, result.output
    assert "→" not in result.stdout
    assert "best IoU" in result.stdout
    assert re.search(r"all +6 +9\d\.\d", result.stdout)


def test_records_may_name_their_annotation(files: dict[str, Path]) -> None:
    records = json.loads(files["results"].read_text())
    named = [entry | {"annotation_id": number} for number, entry in enumerate(records)]
    files["results"].write_text(json.dumps(named))
    result = evaluate(files, only=("annotations", "results"))
    assert "(annotation_id)" in result.stdout


def test_results_without_scores_have_matched_scores_but_no_ap(files: dict[str, Path]) -> None:
    records = json.loads(files["results"].read_text())
    for entry in records:
        del entry["score"]
    files["results"].write_text(json.dumps(records))
    result = evaluate(files, only=("annotations", "results"))
    assert result.exit_code == 0, result.output
    assert "No AP" in result.stdout
    assert re.search(r"all +6 +9\d\.\d", result.stdout)


def test_options_change_the_band_and_who_counts(files: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    evaluate(files, "--json", output)
    wide = json.loads(output.read_text())["matched"]["sizes"]["all"]
    evaluate(
        files,
        "--overwrite",
        "--json",
        output,
        "--boundary-ratio",
        "0.005",
        "--min-area",
        "3000",
        "--min-coarse-iou",
        "0.8",
    )
    narrow = json.loads(output.read_text())
    assert narrow["settings"]["boundary_ratio"] == 0.005
    assert narrow["matched"]["sizes"]["all"]["count"] < wide["count"]
    assert narrow["matched"]["sizes"]["all"]["after"]["boundary_iou"] < wide["after"]["boundary_iou"]


def test_empty_results_score_zero(files: dict[str, Path]) -> None:
    files["results"].write_text("[]")
    result = evaluate(files, only=("annotations", "results"))
    assert result.exit_code == 0, result.output
    assert re.search(r"AP +0\.0 +0\.0", result.stdout)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results", "[{", "results.json: line 1 column 3: is not valid JSON"),
        ("results", '[{"image_id": 1}]', "results.json: record 0: the segmentation is missing"),
        ("results", "[]", "results.json: 0 records, but 6 in"),
        ("annotations", "[]", "annotations.json: is a list, not an annotation file"),
        ("match", "[1]", "match.json: 1 entries for 6 results"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(
    files: dict[str, Path], name: str, content: str, message: str
) -> None:
    files[name].write_text(content)
    result = evaluate(files)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("option", ["--json", "--markdown"])
def test_an_existing_file_is_replaced_only_where_asked_and_an_input_never(
    files: dict[str, Path], tmp_path: Path, option: str
) -> None:
    before = files["results"].read_bytes()
    result = evaluate(files, option, files["results"], "--overwrite")
    assert result.exit_code == 1
    assert "is an input of this run" in result.stderr
    assert files["results"].read_bytes() == before
    mine = tmp_path / "mine"
    mine.write_text("mine")
    result = evaluate(files, option, mine)
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    assert mine.read_text() == "mine"
    assert evaluate(files, option, mine, "--overwrite").exit_code == 0
    assert "average" in mine.read_text().lower()


def test_one_file_cannot_hold_both_outputs(files: dict[str, Path], tmp_path: Path) -> None:
    assert evaluate(files, "--json", tmp_path / "out", "--markdown", tmp_path / "out").exit_code == 2


@pytest.mark.parametrize(
    ("change", "instances", "said"),
    [
        ({"segmentation": []}, 3, "3 of 7 annotations have no mask and are not counted."),
        ({"segmentation": None}, 3, "3 of 7 annotations have no mask and are not counted."),
        ({"iscrowd": 1}, 3, None),
    ],
)
def test_only_what_has_a_mask_counts(
    files: dict[str, Path], change: dict[str, Any], instances: int, said: str | None
) -> None:
    truth = json.loads(files["annotations"].read_text())
    for entry in truth["annotations"][:3]:
        entry.update(change)
    files["annotations"].write_text(json.dumps(truth))
    result = evaluate(files, only=("annotations", "results"))
    assert result.exit_code == 0, result.output
    assert f"(3 images, {instances} instances and" in result.stdout
    assert said is None or said in result.stdout


def test_what_truth_and_results_do_not_have_in_common_is_said(files: dict[str, Path], tmp_path: Path) -> None:
    records = json.loads(files["results"].read_text())
    files["results"].write_text(json.dumps([entry | {"category_id": 17} for entry in records]))
    result = evaluate(files, "--json", tmp_path / "out.json", only=("annotations", "results"))
    assert result.exit_code == 0, result.output
    assert "6 of 6 detections are of categories that are not annotated: 17" in result.stdout
    assert "No category_id of the results" in result.stdout
    assert len(json.loads((tmp_path / "out.json").read_text())["unused"]) == 2
    truth = json.loads(files["annotations"].read_text())
    for entry in truth["annotations"]:
        entry["iscrowd"] = 1
    files["annotations"].write_text(json.dumps(truth))
    result = evaluate(files, only=("annotations", "results"))
    assert "All annotations are crowd regions: there is no instance to score against." in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_a_missing_file_is_named_in_one_line(files: dict[str, Path]) -> None:
    result = evaluate(files, "--match", "nowhere.json")
    assert result.exit_code == 1
    assert result.stderr.startswith("transfiner-refine: error: nowhere.json: ")
    assert result.stderr.count("\n") == 1


def test_help_does_not_wait_for_heavy_imports() -> None:
    code = (
        "import sys; from transfiner_refine.cli.evaluate import command\n"
        "assert not {'torch', 'cv2', 'numpy', 'pycocotools'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
