"""Every format that refine reads can be scored, against truth in the same format or in another."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scenes import rle, write

from transfiner_refine.cli import main
from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.evaluate import Evaluation, evaluate
from transfiner_refine.formats import open_source
from transfiner_refine.formats.convert import convert_masks
from transfiner_refine.formats.registry import FORMATS

pytest.importorskip("faster_coco_eval", reason="the eval extra is not installed")

HEIGHT, WIDTH = 150, 220
NAMES = {1: "person", 2: "car"}
OTHERS = [entry.name for entry in FORMATS if entry.name not in ("coco-annotations", "mask-image")]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images with a person and a car each; before, every mask is shifted by 6 pixels, after by 1."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "images").mkdir()
    listed = [
        {"id": n + 1, "file_name": f"photo_{n}.png", "height": HEIGHT, "width": WIDTH} for n in range(4)
    ]
    whole: dict[str, list[dict[str, Any]]] = {"truth": [], "before": [], "after": []}
    for number, image in enumerate(listed):
        noise = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images" / str(image["file_name"]))
        for category, x in ((1, 60), (2, 160)):
            disc = np.zeros((HEIGHT, WIDTH), np.uint8)
            cv2.circle(disc, (x, 70), 22 + 3 * number, 1, -1)
            for name, shift in (("truth", 0), ("before", 6), ("after", 1)):
                mask = np.roll(disc, shift, 1)
                record = {"image_id": image["id"], "category_id": category, "segmentation": rle(mask)}
                record |= {"id": len(whole[name]) + 1, "area": int(mask.sum()), "iscrowd": 0}
                whole[name].append(record | ({} if name == "truth" else {"score": 0.9 - number / 10}))
    categories = [{"id": key, "name": name, "supercategory": name} for key, name in NAMES.items()]
    for name, records in whole.items():
        content = {"images": listed, "categories": categories, "annotations": records}
        write(folder, f"{name}.json", content)
    return folder


def converted(coco: Path, name: str, to: str, folder: Path) -> Path:
    """One of the files in another format."""
    source = coco / f"{name}.json"
    if to == "coco-annotations":
        return source
    output = folder / (f"{name}.json" if to.startswith("coco") else name)
    done = convert_masks(source, output, to=to, images=coco / "images")
    assert done.instances == 8, done
    return output / "pred" if (output / "pred").is_dir() else output


def scores(evaluation: Evaluation) -> tuple[Any, ...]:
    total = evaluation.matched.summary["all"]
    return total.count, total.before, total.after


@pytest.mark.parametrize("to", OTHERS)
def test_masks_of_any_format_have_the_scores_that_they_have_as_coco(
    to: str, coco: Path, tmp_path: Path
) -> None:
    opened = partial(open_source, images=coco / "images")
    before, after = (converted(coco, name, to, tmp_path) for name in ("before", "after"))
    expected = evaluate(coco / "truth.json", coco / "after.json", before=coco / "before.json")
    found = evaluate(coco / "truth.json", after, before=before, opened=opened)
    assert scores(expected)[0] == 8
    polygons = to in ("yolo-seg", "labelme")  # which hold corners of polygons, not pixels
    if polygons:
        assert scores(found)[0] == 8
        assert np.allclose(scores(found)[1], scores(expected)[1], atol=0.02)
    else:
        assert scores(found) == scores(expected)
    assert {row.image for row in found.instances_matched} == {f"photo_{n}.png" for n in range(4)}
    if to in ("cityscapes-results", "coco-results-jsonl", "coco-results"):  # which have scores
        assert found.ap_after is not None
        assert found.ap_after["mask"].scores == pytest.approx(expected.ap_after["mask"].scores, nan_ok=True)


@pytest.mark.parametrize(
    "to",
    [name for name in OTHERS if name not in ("coco-results", "coco-results-jsonl", "cityscapes-results")],
)
def test_the_truth_may_be_of_any_format_too(to: str, coco: Path, tmp_path: Path) -> None:
    opened = partial(open_source, images=coco / "images")
    truth = converted(coco, "truth", to, tmp_path)
    found = evaluate(truth, coco / "after.json", before=coco / "before.json", opened=opened)
    assert scores(found)[0] == 8
    own = evaluate(truth, converted(coco, "after", to, tmp_path), opened=opened)
    assert own.matched.summary["all"].before.iou == pytest.approx(scores(found)[2].iou, abs=0.02)


def test_where_masks_have_no_classes_those_of_the_truth_play_no_part(coco: Path, tmp_path: Path) -> None:
    opened = partial(open_source, images=coco / "images")
    found = evaluate(coco / "truth.json", converted(coco, "after", "png", tmp_path), opened=opened)
    assert "The masks have no classes, so that the classes of the truth play no part." in found.unused
    assert found.matched.summary["all"].count == 8
    assert found.ap_after is None  # for there are no scores


def test_an_image_that_the_truth_does_not_know_is_named(coco: Path, tmp_path: Path) -> None:
    masks, images = converted(coco, "after", "png", tmp_path), tmp_path / "images"
    images.mkdir()
    for number in range(4):
        (images / f"photo_{number}.png").write_bytes((coco / "images" / f"photo_{number}.png").read_bytes())
    (images / "photo_3.png").rename(images / "other.png")
    (masks / "photo_3").rename(masks / "other")
    with pytest.raises(InputError, match=r"image other\.png is not among those of truth\.json"):
        evaluate(coco / "truth.json", masks, opened=partial(open_source, images=images))


def test_the_command_takes_folders_and_writes_rows_and_plots(coco: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the explain extra is not installed")
    command = ["evaluate", "--annotations", str(coco / "truth.json"), "--images", str(coco / "images")]
    for name in ("before", "after"):
        option = "--results" if name == "after" else "--before"
        command += [option, str(converted(coco, name, "cityscapes-results", tmp_path))]
    for name in ("json", "csv"):
        command += [f"--{name}", str(tmp_path / f"out.{name}")]
    command += ["--plots", str(tmp_path / "plots")]
    result = CliRunner().invoke(main, [*command, "--quiet"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.output == ""
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["version"] == 1
    assert data["program"].startswith("transfiner-refine ")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(data["instances_matched"]) == 8
    for row, other in zip(rows, data["instances_matched"], strict=True):
        assert row == {key: str(value) for key, value in other.items()}
        assert other["iou_after"] > other["iou_before"]
        assert other["counted"]
    sizes = data["matched"]["sizes"]["all"]
    assert sizes["after"]["iou"] == pytest.approx(
        np.mean([row["iou_after"] for row in data["instances_matched"]])
    )
    assert sizes["unchanged"] == 0
    plots = {path.name for path in (tmp_path / "plots").iterdir()}
    assert plots == {"before_after.png", "gain_by_size.png", "reliability.png"}
    assert all(min(Image.open(tmp_path / "plots" / name).size) > 400 for name in plots)
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 1
    assert "exists already" in again.output
