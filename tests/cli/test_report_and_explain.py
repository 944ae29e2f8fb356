"""``report``, ``explain`` and ``refine --report`` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from transfiner_refine.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rocket of the examples at half its size: images/, masks/."""
    folder = tmp_path_factory.mktemp("rocket")
    for part, name in (("images", "rocket.jpg"), ("masks", "rocket_rocket.png")):
        (folder / part).mkdir()
        picture = Image.open(EXAMPLES / part / name)
        picture.resize((320, 213), Image.Resampling.NEAREST).save(folder / part / name)
    return folder


@pytest.fixture(scope="module")
def refined(work: Path) -> Result:
    return run(
        "refine", "--images", work / "images", "--masks", work / "masks", "--output", work / "refined",
        "--report", work / "report", "--device", "cpu",
    )  # fmt: skip


def test_refine_makes_the_report_in_the_same_run(work: Path, refined: Result) -> None:
    assert refined.exit_code == 0, refined.output
    assert (work / "report" / "index.html").is_file()
    assert (work / "report" / "data" / "00000.js").is_file()
    assert f"Open {work / 'report' / 'index.html'} in a browser." in refined.stdout


@pytest.mark.usefixtures("refined")
def test_refine_refuses_a_full_report_folder_before_the_work(work: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine").write_text("mine")
    done = run(
        "refine", "--images", work / "images", "--masks", work / "masks", "--output", tmp_path / "out",
        "--report", tmp_path / "report",
    )  # fmt: skip
    assert done.exit_code == 1
    assert "exists already and is not empty" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("refined")
def test_report_says_what_it_shows_and_writes_overlays(work: Path, tmp_path: Path) -> None:
    done = run(
        "report", "--images", work / "images", "--before", work / "masks", "--after", work / "refined",
        "--annotations", work / "refined", "--output", tmp_path / "page", "--overlay", tmp_path / "overlay",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Shown: 1 instance in 1 image.\n")
    assert {path.name for path in (tmp_path / "overlay").iterdir()} == {
        "rocket_before.png",
        "rocket_after.png",
        "rocket_before_after.jpg",
    }
    assert (tmp_path / "page" / "assets" / "viewer.js").is_file()


def test_the_report_reads_as_refine_has_read(work: Path, tmp_path: Path) -> None:
    """A map of the ids 1 and 255 reads as one mask unless the format is given."""
    (tmp_path / "masks").mkdir()
    ids = np.zeros((213, 320), np.uint8)
    ids[40:90, 40:90], ids[120:180, 150:250] = 1, 255
    Image.fromarray(ids).save(tmp_path / "masks" / "rocket.png")
    done = run(
        "refine", "--images", work / "images", "--masks", tmp_path / "masks", "--output", tmp_path / "out",
        "--from", "label-maps", "--report", tmp_path / "report", "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Shown: 2 instances in 1 image." in done.stdout
    done = run(
        "report", "--images", work / "images", "--before", tmp_path / "masks", "--after", tmp_path / "out",
        "--from", "label-maps", "--output", tmp_path / "again", "--max-image-pixels", "1000",
    )  # fmt: skip
    assert done.exit_code == 1
    assert "no image is left to show (" in done.stderr
    assert "rocket" in done.stderr


def test_report_needs_something_to_make(work: Path) -> None:
    done = run("report", "--images", work / "images", "--before", work / "masks", "--after", work / "masks")
    assert done.exit_code == 2
    assert "--output, --overlay or both" in done.stderr


def test_report_names_what_it_cannot_use_in_one_line(work: Path, tmp_path: Path) -> None:
    (tmp_path / "after.json").write_text("[{")
    done = run(
        "report", "--images", work / "images", "--before", work / "masks", "--after", tmp_path / "after.json",
        "--output", tmp_path / "page",
    )  # fmt: skip
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "after.json" in done.stderr


def test_explain_draws_a_png(work: Path, tmp_path: Path) -> None:
    arguments = (
        "explain", work / "images" / "rocket.jpg", work / "masks" / "rocket_rocket.png",
        "--output", tmp_path / "sheet.png", "--truth", work / "masks" / "rocket_rocket.png", "--device", "cpu",
    )  # fmt: skip
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"Drawn: {tmp_path / 'sheet.png'}\n"
    assert Image.open(tmp_path / "sheet.png").width == 2400
    again = run(*arguments)
    assert again.exit_code == 1
    assert "exists already" in again.stderr


def test_explain_refuses_a_mask_of_another_photo_in_one_line(work: Path, tmp_path: Path) -> None:
    Image.new("L", (64, 48), 255).save(tmp_path / "mask.png")
    done = run(
        "explain", work / "images" / "rocket.jpg", tmp_path / "mask.png", "--output", tmp_path / "s.png"
    )
    assert done.exit_code == 1
    assert "rocket.jpg: the image is 213×320 (height × width), its masks are 48×64" in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "mask.png"]


@pytest.mark.parametrize("command", ["report", "explain"])
def test_help_fits_eighty_columns_and_does_not_wait_for_heavy_imports(command: str) -> None:
    shown = run(command, "--help")
    assert shown.exit_code == 0
    assert max(len(line) for line in shown.output.splitlines()) <= 80
    code = (
        f"import sys; from transfiner_refine.cli.{command} import command\n"
        "assert not {'torch', 'cv2', 'numpy', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_of_crowds_is_refined_and_shown_only_where_asked_for(work: Path, tmp_path: Path) -> None:
    size, runs = [213, 320], [100, 5000, 213 * 320 - 5100]
    image = {"id": 1, "file_name": "rocket.jpg", "height": size[0], "width": size[1]}
    crowd = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 1,
        "segmentation": {"size": size, "counts": runs},
    }
    document = {"images": [image], "annotations": [crowd], "categories": [{"id": 1, "name": "rocket"}]}
    (tmp_path / "cvat.json").write_text(json.dumps(document))
    options = ["--images", work / "images", "--masks", tmp_path / "cvat.json", "--device", "cpu"]
    done = run("refine", *options, "--output", tmp_path / "a.json", "--report", tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert "All instances are crowd regions (iscrowd 1); --refine-crowds refines them." in done.stdout
    assert "no image is left to show (1 crowd region or empty mask); give --refine-crowds" in done.stderr
    options += ["--refine-crowds", "--output", tmp_path / "b.json", "--report", tmp_path / "b"]
    done = run("refine", *options)
    assert done.exit_code == 0, done.output
    assert "Shown: 1 instance in 1 image." in done.stdout
