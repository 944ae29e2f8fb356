"""The journey of docs/guides/fine_tuning.md: data of a new domain, shipped weights, fine-tuned weights, scores."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as codec
from pycocotools.coco import COCO

from transfiner_refine.cli import main
from transfiner_refine.training import open_dataset

skimage_data = pytest.importorskip("skimage.data", reason="the dev extra is not installed")

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "fine_tune" / "make_data.py"
GUIDE = ROOT / "docs" / "guides" / "fine_tuning.md"
HALVES = ("train", "test")
FEWER_STEPS = {"runs/bricks": "60", "runs/simulated": "1"}  # by the run's folder; the guide takes 120 each


@pytest.fixture(scope="module")
def make_data() -> dict[str, Any]:
    """The names of the script."""
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def bricks(make_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "bricks"
    made = CliRunner().invoke(make_data["main"], ["--output", str(folder)], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    return folder


@pytest.mark.parametrize("half", HALVES)
def test_annotations_and_detections_are_what_pycocotools_reads(bricks: Path, half: str) -> None:
    truth = COCO(str(bricks / half / "annotations.json"))
    found = truth.loadRes(str(bricks / half / "coarse_detector.json"))
    photo = np.asarray(Image.open(bricks / half / "images" / truth.imgs[1]["file_name"]))
    assert len(truth.anns) >= 30
    for annotation in truth.anns.values():
        mask = truth.annToMask(annotation)
        assert mask.shape == photo.shape
        assert mask.sum() == annotation["area"] > 0
        assert annotation["bbox"] == codec.toBbox(annotation["segmentation"]).tolist()
    assert all(found.annToMask(result).any() and 0 < result["score"] <= 1 for result in found.anns.values())


@pytest.mark.parametrize("half", HALVES)
def test_the_detector_finds_nearly_every_brick_and_fits_none(bricks: Path, half: str) -> None:
    best = overlaps(bricks / half).max(axis=0)
    assert np.mean(best > 0.5) >= 0.95
    assert 0.7 < np.median(best) < 0.9
    assert best.max() < 0.97


@pytest.mark.parametrize("half", HALVES)
def test_a_brick_is_one_piece_and_overlaps_no_other(bricks: Path, half: str) -> None:
    truth = COCO(str(bricks / half / "annotations.json"))
    masks = np.stack([truth.annToMask(annotation) for annotation in truth.anns.values()])
    assert masks.sum(axis=0).max() == 1


def test_each_brick_lies_whole_in_one_half(bricks: Path, make_data: dict[str, Any]) -> None:
    wall = skimage_data.brick()
    whole = {mask.tobytes() for mask in make_data["true_masks"](wall)}
    halves = {half: COCO(str(bricks / half / "annotations.json")) for half in HALVES}
    photos = [np.asarray(Image.open(bricks / half / "images" / make_data["PHOTO"])) for half in HALVES]
    assert np.array_equal(np.hstack(photos), wall)
    annotated = []
    for half, truth in halves.items():
        for annotation in truth.anns.values():
            canvas = np.zeros(wall.shape, bool)
            columns = np.s_[: photos[0].shape[1]] if half == "train" else np.s_[photos[0].shape[1] :]
            canvas[:, columns] = truth.annToMask(annotation)
            annotated.append(canvas.tobytes())
    assert set(annotated) <= whole
    assert len(set(annotated)) == len(annotated)


def test_training_takes_the_folder_with_the_detectors_masks(bricks: Path) -> None:
    loaded = open_dataset(bricks / "train")
    assert len(loaded.instances) >= 30
    assert np.mean([bool(instance.coarse) for instance in loaded.instances]) >= 0.95


def overlaps(half: Path) -> np.ndarray:
    """IoU of each detection with each true mask: [detections, bricks]."""
    truth = json.loads((half / "annotations.json").read_text())["annotations"]
    found = json.loads((half / "coarse_detector.json").read_text())
    masks = ([record["segmentation"] for record in records] for records in (found, truth))
    return np.asarray(codec.iou(*masks, [0] * len(truth)))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Training sets the process's threads; they are put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_guide_ends_in_a_better_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the guide, in order, with fewer steps of training."""
    pytest.importorskip("faster_coco_eval", reason="the eval extra is not installed")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "docs").mkdir()
    guide = GUIDE.read_text()
    for arguments in commands(guide):
        if arguments[0] == "python":
            subprocess.run([sys.executable, *arguments[1:]], check=True)
        else:
            done = CliRunner().invoke(main, shortened(arguments[1:]), catch_exceptions=False)
            assert done.exit_code == 0, f"{shlex.join(arguments)}\n{done.output}"
    for block in re.findall(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL):
        exec(compile(block.replace("steps=120", "steps=1"), GUIDE.name, "exec"), {})
    assert Path("runs/from_python/refiner.safetensors").is_file()
    shipped, tuned = (json.loads(Path(f"{name}.json").read_text()) for name in ("shipped", "tuned"))
    before, after = (scores["matched"]["sizes"]["all"] for scores in (shipped, tuned))
    assert before["count"] == after["count"] >= 30
    assert after["after"]["iou"] >= before["after"]["iou"] + 0.01
    assert after["after"]["boundary_iou"] >= before["after"]["boundary_iou"] + 0.03
    assert Image.open("docs/fine_tuning.png").width > 800


def commands(guide: str) -> list[list[str]]:
    """The commands of a guide's shell blocks as lists of arguments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


def shortened(arguments: list[str]) -> list[str]:
    """A training command with fewer steps; others as they are."""
    if arguments[0] != "train":
        return arguments
    steps = FEWER_STEPS[arguments[arguments.index("--output") + 1]]
    position = arguments.index("--steps") + 1
    return [*arguments[:position], steps, *arguments[position + 1 :]]
