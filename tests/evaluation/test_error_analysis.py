"""Where the network looks, against where masks are wrong."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from transfiner_refine import Refiner, load_refiner
from transfiner_refine.cli import main
from transfiner_refine.evaluation.error_analysis import analyse_errors, instance_errors
from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.weights import find_weights
from transfiner_refine.refine.torch_engine import TorchEngine

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    refiner = load_refiner(device="cpu", engine="torch")
    assert isinstance(refiner, Refiner)
    return refiner


@pytest.fixture(scope="module")
def case() -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    """A bright disc: photo, truth, and a coarse mask that is shifted."""
    generator = np.random.default_rng(1)
    image = generator.integers(30, 70, (200, 240, 3)).astype(np.uint8)
    truth = np.zeros((200, 240), np.uint8)
    cv2.circle(truth, (120, 100), 60, 1, -1)
    image[truth > 0] = (200, 220, 180)
    return image, truth > 0, np.roll(truth, 7, 1) > 0


def test_counts_of_an_instance_agree_with_each_other(
    refiner: Refiner, case: tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]
) -> None:
    image, truth, coarse = case
    row = instance_errors(refiner, image, truth, coarse)
    refined = refiner.refine(image, coarse[None])[0]
    assert row.area == truth.sum()
    assert row.wrong == np.count_nonzero(coarse != truth)
    assert row.wrong - row.fixed + row.broken == np.count_nonzero(refined != truth)
    assert row.wrong_inside <= min(row.wrong, row.covered)
    assert row.covered < row.region
    assert row.after.iou == pytest.approx(
        np.count_nonzero(refined & truth) / np.count_nonzero(refined | truth)
    )
    assert max(row.before.iou, row.after.iou) <= row.oracle.iou <= 1
    assert row.levels[0].grid == 28


def test_where_everything_is_relabelled_the_oracle_is_perfect(
    case: tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]],
) -> None:
    image, truth, coarse = case
    network = load_network(find_weights("lite"))
    network.config = replace(network.config, relabel_threshold=0.0)
    row = instance_errors(Refiner(TorchEngine(network, "cpu")), image, truth, coarse)
    assert row.covered == row.region
    assert row.wrong_inside == row.wrong
    assert row.oracle.iou == row.oracle.boundary_iou == 1


def test_summaries_pool_the_pixels_and_leave_empty_masks_out(
    refiner: Refiner, case: tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]
) -> None:
    image, truth, coarse = case
    found = analyse_errors(refiner, [case, case, (image, truth, np.zeros_like(coarse))], weights="lite")
    (row, same) = found.rows
    assert row == same
    overall = found.sizes["all"]
    assert overall.count == found.sizes["large"].count == 2
    assert overall.wrong_inside == row.wrong_inside / row.wrong
    assert math.isnan(found.sizes["small"].area)
    assert [level.grid for level in found.levels][:2] == [28, 56]
    assert found.levels[0].area <= overall.area


def test_the_command_adds_the_analysis_to_all_its_outputs(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval", reason="the eval extra is not installed")
    rocket = 3  # image id; one instance keeps the test short
    parts = {}
    for name in ("truth", "detections"):
        content = json.loads((EXAMPLES / f"{name}.json").read_text())
        if name == "truth":
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] == rocket]
        else:
            content = [record for record in content if record["image_id"] == rocket]
        parts[name] = tmp_path / f"{name}.json"
        parts[name].write_text(json.dumps(content))
    arguments = ["evaluate", "--annotations", parts["truth"], "--before", parts["detections"], "--results"]
    arguments += [parts["detections"], "--error-analysis", "--device", "cpu"]
    arguments += ["--json", tmp_path / "out.json", "--markdown", tmp_path / "out.md"]
    without_photos = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert without_photos.exit_code == 2
    assert "give --images" in without_photos.stderr
    done = CliRunner().invoke(main, [str(a) for a in [*arguments, "--images", EXAMPLES / "images"]])
    assert done.exit_code == 0, done.output
    assert "Error analysis (weights lite)" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    analysis = json.loads((tmp_path / "out.json").read_text())["error_analysis"]
    assert 0 < analysis["sizes"]["all"]["area"] < 1
    assert analysis["sizes"]["small"]["oracle"]["iou"] is None
    assert "**Quadtree by level, % of pixels**" in (tmp_path / "out.md").read_text()
