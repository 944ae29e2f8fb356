"""One image and its mask on the command line: files, pipes, pictures, and contradictions before the work."""

from __future__ import annotations

import io
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
PHOTO, MASK = EXAMPLES / "images" / "coffee.jpg", EXAMPLES / "masks" / "coffee_cup.png"


def run(*arguments: object, data: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], input=data)


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("refined") / "cup.png"
    done = run("refine", PHOTO, MASK, "-o", output)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Network: lite, onnx in " in done.stdout
    assert f"Written: {output} (mask-image)." in done.stdout
    return output


def test_one_mask_in_one_mask_out(refined: Path) -> None:
    before, after = (np.asarray(Image.open(path)) for path in (MASK, refined))
    assert (after.shape, after.dtype, set(np.unique(after))) == (before.shape, before.dtype, {0, 255})
    assert 0 < np.count_nonzero(before != after) < 0.1 * before.size


def test_a_dash_is_standard_input_and_output(refined: Path) -> None:
    done = run("refine", PHOTO, "-", "-o", "-", data=MASK.read_bytes())
    assert done.exit_code == 0
    assert done.stdout_bytes == refined.read_bytes()
    assert "Written: standard output." in done.stderr
    photo = run("refine", "-", MASK, "-o", "-", data=PHOTO.read_bytes())
    assert photo.stdout_bytes == refined.read_bytes()


def test_json_goes_through_pipes_too(tmp_path: Path) -> None:
    assert run("refine", PHOTO, MASK, "-o", tmp_path / "cup.json", "--quiet").output == ""
    done = run("refine", PHOTO, "-", "-o", "-", "--quiet", data=(tmp_path / "cup.json").read_bytes())
    assert json.loads(done.stdout)["images"][0]["file_name"] == "coffee.jpg"


@pytest.mark.parametrize(("flag", "dtype"), [("--soft", np.uint8), ("--soft16", np.int32)])
def test_soft_writes_probabilities(refined: Path, tmp_path: Path, flag: str, dtype: type) -> None:
    done = run("refine", PHOTO, MASK, "-o", tmp_path / "soft.png", flag)
    assert done.exit_code == 0
    shades = np.asarray(Image.open(tmp_path / "soft.png"))
    most = 255 if flag == "--soft" else 65535
    assert shades.max() == most
    assert shades.astype(dtype).max() == most
    assert np.array_equal(shades >= (most + 1) // 2, np.asarray(Image.open(refined)) > 0)
    assert len(np.unique(shades)) > 50


def test_a_cut_out_has_a_soft_edge_and_none_of_the_background(tmp_path: Path) -> None:
    size = 96
    photo = np.zeros((size, size, 3), np.uint8)
    photo[..., 2] = 255  # blue, and a red disc with a mixed edge on it
    y, x = np.mgrid[:size, :size]
    share = np.clip(28 - np.hypot(y - 48, x - 48) + 0.5, 0, 1)[..., None]
    photo = np.rint(photo * (1 - share) + np.array((255, 0, 0)) * share).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray((np.hypot(y - 46, x - 50) < 27).astype(np.uint8) * 255).save(tmp_path / "mask.png")
    done = run(
        "refine", tmp_path / "photo.png", tmp_path / "mask.png", "-o", tmp_path / "cut.png", "--cutout"
    )
    assert done.exit_code == 0
    cut = np.asarray(Image.open(tmp_path / "cut.png")).astype(int)
    assert cut.shape == (size, size, 4)
    assert (cut[48, 48, 3], cut[2, 2, 3]) == (255, 0)
    edge = (cut[..., 3] > 40) & (cut[..., 3] < 215)
    assert edge.any()
    assert cut[edge][:, 2].mean() < 60 < photo[edge][:, 2].mean()  # less blue than there was


def test_an_overlay_shows_before_beside_after(tmp_path: Path) -> None:
    assert run("refine", PHOTO, MASK, "-o", tmp_path / "both.jpg", "--overlay").exit_code == 0
    both, photo = Image.open(tmp_path / "both.jpg"), Image.open(PHOTO)
    assert (both.width, both.height) == (2 * photo.width + 4, photo.height)


def test_a_folder_gets_a_picture_for_each_mask(tmp_path: Path) -> None:
    done = run(
        "refine", EXAMPLES / "images", EXAMPLES / "masks", "-o", tmp_path / "cut", "--cutout", "--json"
    )
    assert done.exit_code == 0
    assert json.loads(done.stdout)["refined"] == 6
    assert len(list((tmp_path / "cut").rglob("*.png"))) == 6
    assert (tmp_path / "cut" / "coffee" / "0002.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["x.png"], 2, "one path too many, x.png; wanted are IMAGES MASKS"),
        (["-o", "out.jpg"], 1, "out.jpg: mask-image is a file whose name ends in .png"),
        (["-o", "out.jpg", "--cutout"], 1, "out.jpg: cutout is written as .png or .webp"),
        (["--soft", "--cutout"], 2, "--soft and --cutout ask for two kinds of output"),
        (["--soft", "--to", "voc"], 2, "--soft does not go with --to"),
        (["--report", "page", "-o", "out.json"], 2, "--report compares masks of one format"),
        (["--score-threshold", "2"], 2, "2.0 is not in the range 0<=x<=1"),
        (["--device", "gpu"], 2, "'gpu' is none of auto, cpu, cuda, cuda:N and mps"),
        (["--precision", "fp8"], 2, "'fp8' is not one of 'auto', 'fp32'"),
    ],
)
def test_a_contradiction_is_one_line_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    output = [] if "-o" in arguments else ["-o", "out.png"]
    done = run("refine", PHOTO, MASK, *output, *arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith("transfiner-refine: error: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["refine", "-", "-", "-o", "x.png"], "standard input is either the image or the masks"),
        (["refine", PHOTO, EXAMPLES / "masks", "-o", "-"], "a folder or --to does not go to standard output"),
        (["refine", PHOTO], "missing --masks and --output"),
        (["refin", PHOTO], "there is no command 'refin'; did you mean refine"),
        (["sharpen"], "there is no command 'sharpen' (see transfiner-refine --help)"),
        (["--quit"], "No such option '--quit'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_two(arguments: list[object], reason: str) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert reason in done.stderr


def test_empty_and_damaged_input_is_called_standard_input() -> None:
    assert "standard input: is empty" in run("refine", PHOTO, "-", "-o", "-", data=b"").stderr
    done = run("refine", PHOTO, "-", "-o", "-", data=b"\x89PNG\r\n\x1a\n")
    assert (done.exit_code, done.stdout_bytes) == (1, b"")
    assert done.stderr.startswith("transfiner-refine: error: standard input: ")


def test_several_masks_do_not_fit_into_one_probability(tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    for name in ("cup", "spoon"):
        (folder / f"coffee_{name}.png").write_bytes((EXAMPLES / "masks" / f"coffee_{name}.png").read_bytes())
    done = run("refine", PHOTO, folder, "-o", tmp_path / "out.png", "--soft")
    assert done.exit_code == 1
    assert (
        "holds 2 masks, and one file has the probability of one; give a name without a suffix" in done.stderr
    )


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_it_runs_without_streams_and_as_a_module(refined: Path, tmp_path: Path, closed: str) -> None:
    output = tmp_path / "cup.png"
    command = f'"{sys.executable}" -m transfiner_refine refine "{PHOTO}" "{MASK}" -o "{output}" {closed}'
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    assert output.read_bytes() == refined.read_bytes()


def test_a_program_without_a_console_has_no_streams_at_all(refined: Path, tmp_path: Path) -> None:
    output = tmp_path / "cup.png"
    script = (
        "import sys; sys.stdout = sys.stderr = None\n"  # as pythonw and services have it
        "from transfiner_refine.cli import main; main()"
    )
    arguments = [sys.executable, "-c", script, "refine", str(PHOTO), str(MASK), "-o", str(output)]
    assert subprocess.run(arguments, check=False).returncode == 0
    assert output.read_bytes() == refined.read_bytes()


def test_the_log_says_what_was_loaded(tmp_path: Path) -> None:
    arguments = ["refine", str(PHOTO), str(MASK), "-o", str(tmp_path / "o.png"), "--log-level", "info"]
    command = [sys.executable, "-m", "transfiner_refine", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "transfiner-refine: INFO: loaded Refiner(weights=" in done.stderr


def test_options_of_help_stand_in_groups_and_fit_eighty_columns() -> None:
    shown = run("refine", "--help").stdout
    headings = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Input and output:", "What is refined:", "Network:", "Run:"]
    assert max(map(len, shown.splitlines())) <= 80
    assert io.StringIO(shown).readline() == "Usage: transfiner-refine refine [OPTIONS] IMAGES MASKS\n"


def test_every_command_takes_its_paths_without_names_and_a_short_output(tmp_path: Path) -> None:
    """What is natural: inputs by place, -o for the output."""
    converted = run("convert-masks", MASK, "-o", tmp_path / "cup.json", "--images", PHOTO, "--json")
    assert (converted.exit_code, json.loads(converted.stdout)["instances"]) == (0, 1)
    again = run("convert-masks", tmp_path / "cup.json", "-o", tmp_path / "cup.png")
    assert again.exit_code == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "cup.png")), np.asarray(Image.open(MASK)))
    shown = run("report", PHOTO, MASK, MASK, "-o", tmp_path / "report", "--quiet")
    assert (shown.exit_code, shown.output) == (0, "")
    for command in (
        "demo",
        "merge",
        "report",
        "explain",
        "export",
        "convert-weights",
        "convert-masks",
        "train",
    ):
        lines = run(command, "--help").stdout.splitlines()
        assert any("-o, --output" in line for line in lines), command
        assert max(map(len, lines)) <= 80, command
