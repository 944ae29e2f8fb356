"""The command line: help at once, one line an error, the promised exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from transfiner_refine import __version__, load_refiner
from transfiner_refine.cli import main
from transfiner_refine.cli.options import FORMAT_NAMES
from transfiner_refine.formats.registry import FORMATS

RLE = {"size": [6, 8], "counts": [10, 5, 33]}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "1.png")
    records = [{"image_id": 1, "category_id": 1, "segmentation": RLE, "score": 0.5}]
    (tmp_path / "masks.json").write_text(json.dumps(records))
    return tmp_path


def refine(job: Path, *options: str, masks: str = "masks.json") -> Result:
    paths = ["--images", str(job / "images"), "--masks", str(job / masks), "--output", str(job / "out.json")]
    return CliRunner().invoke(main, ["refine", *paths, *options])


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["refine", "--help"]])
def test_help_and_version_load_neither_torch_nor_numpy(arguments: Sequence[str]) -> None:
    script = (
        "import sys; from transfiner_refine.cli import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'cv2') if name in sys.modules])"
    )
    assert python("-c", script).stdout.splitlines()[-1] == "[]"


def test_help_lists_the_commands_and_fits_eighty_columns() -> None:
    for arguments in (["--help"], ["refine", "--help"]):
        shown = CliRunner().invoke(main, arguments)
        assert shown.exit_code == 0
        assert max(len(line) for line in shown.output.splitlines()) <= 80
    assert "refine " in CliRunner().invoke(main, ["--help"]).output


def test_version_is_that_of_the_package() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"transfiner-refine, version {__version__}\n"


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(job: Path) -> None:
    done = refine(job, "--dry-run")
    assert (done.exit_code, done.stdout) == (0, "Would refine 1 of 1 instance in 1 image.\n")
    assert not (job / "out.json").exists()


def test_quiet_leaves_errors_only(job: Path) -> None:
    done = refine(job, "--dry-run", "--quiet")
    assert (done.exit_code, done.output) == (0, "")


def test_failed_records_are_named_on_stderr_and_make_exit_code_one(job: Path) -> None:
    (job / "images" / "1.png").write_bytes(b"no image")
    done = refine(job, "--dry-run", "--quiet")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"transfiner-refine: {job / 'images' / '1.png'}: is no image of a known format; replace the file\n"
    )


@pytest.mark.parametrize(
    ("masks", "text", "reason"),
    [
        ("masks.json", "[", "line 1 column 2: is not valid JSON"),
        ("masks.json", "[]", "holds no records"),
        ("none.json", None, "cannot be read (No such file or directory); check --masks"),
    ],
)
def test_unusable_input_is_one_line_on_stderr_and_exit_code_one(
    job: Path, masks: str, text: str | None, reason: str
) -> None:
    if text is not None:
        (job / masks).write_text(text)
    done = refine(job, masks=masks)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"transfiner-refine: error: {job / masks}: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "options", [["--batch-size", "0"], ["--precision", "fp8"], ["--min-area", "x"], ["--no-such-option"]]
)
def test_wrong_usage_is_exit_code_two(job: Path, options: list[str]) -> None:
    assert refine(job, *options).exit_code == 2


def test_an_unknown_command_is_exit_code_two() -> None:
    assert CliRunner().invoke(main, ["sharpen"]).exit_code == 2


def test_existing_output_is_refused_unless_overwriting_is_asked_for(job: Path) -> None:
    (job / "out.json").write_text("mine")
    done = refine(job, "--dry-run")
    assert done.exit_code == 1
    assert "out.json: exists already; give another --output, or --overwrite" in done.stderr
    assert refine(job, "--dry-run", "--overwrite").exit_code == 0
    assert (job / "out.json").read_text() == "mine"


def test_ctrl_c_ends_with_130(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "scandir", interrupted)  # the user loses patience while the folder is listed
    done = refine(job)
    assert (done.exit_code, done.stderr) == (130, "transfiner-refine: interrupted\n")


@pytest.fixture
def interrupted_job(job: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The job after Ctrl-C at the very end, when everything is refined and being written."""

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        done = refine(job, "--device", "cpu", "--workers", "0")
    assert (done.exit_code, done.stdout, done.stderr) == (
        130,
        "",
        "transfiner-refine: interrupted; 1 refined mask is kept, repeat the command with --resume to go on\n",
    )
    return job


def test_an_interrupted_run_is_resumed_with_the_same_command(interrupted_job: Path) -> None:
    job = interrupted_job
    done = refine(job, "--device", "cpu", "--resume")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("Refined 1 of 1 instance in 1 image in ")
    assert sorted(path.name for path in job.iterdir()) == ["images", "masks.json", "out.json"]


def test_an_interrupted_run_is_neither_forgotten_nor_mixed_up(interrupted_job: Path) -> None:
    job = interrupted_job
    again = refine(job, "--device", "cpu")
    assert (again.exit_code, again.stderr) == (
        1,
        f"transfiner-refine: error: {job / 'out.json'}: an interrupted run has left .out.json.journal with 1 "
        "refined mask; go on with it by --resume, or start anew with --overwrite\n",
    )
    other = refine(job, "--device", "cpu", "--resume", "--precision", "bf16")
    assert other.exit_code == 1
    assert "is of another run: --engine was onnx and is torch" in other.stderr
    precisions = {"fp32", "int8"}
    (first,) = precisions - {load_refiner(device="cpu").precision}
    other = refine(job, "--device", "cpu", "--resume", "--precision", first)
    assert f"--precision was {(precisions - {first}).pop()} and is {first}" in other.stderr
    other = refine(job, "--device", "cpu", "--resume", "--no-tiles")
    assert "--tiles was true and is false" in other.stderr
    assert refine(job, "--device", "cpu", "--overwrite").exit_code == 0


def test_strict_stops_at_the_first_fault(job: Path) -> None:
    (job / "images" / "1.png").write_bytes(b"no image")
    for options in (["--strict"], ["--strict", "--dry-run"]):
        done = refine(job, "--device", "cpu", *options)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == (
            f"transfiner-refine: error: {job / 'images' / '1.png'}: is no image of a known format; "
            "replace the file\n"
        )
    assert not (job / "out.json").exists()


def test_a_photo_of_too_many_pixels_is_named_and_its_masks_stay(job: Path) -> None:
    done = refine(job, "--device", "cpu", "--max-image-pixels", "47")
    assert done.exit_code == 1
    assert "6×8 = 48 pixels, more than the 47 allowed; raise --max-image-pixels" in done.stderr
    assert json.loads((job / "out.json").read_text()) == json.loads((job / "masks.json").read_text())


def test_the_output_may_have_another_format(job: Path) -> None:
    done = refine(job, "--device", "cpu", "--from", "coco-results", "--to", "coco-annotations")
    assert (done.exit_code, done.stderr) == (0, "")
    written = json.loads((job / "out.json").read_text())
    assert [image["file_name"] for image in written["images"]] == ["1.png"]
    assert len(written["annotations"]) == 1


def test_what_the_other_format_cannot_hold_is_named(job: Path) -> None:
    records = json.loads((job / "masks.json").read_text())
    (job / "masks.json").write_text(json.dumps([*records, {**records[0], "score": 0.1}]))
    done = refine(job, "--device", "cpu", "--to", "voc", "--output", str(job / "voc"))
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "record 1: is not in the output" in done.stderr
    assert "Not in the output, whose format differs: 1 instance." in done.stdout


def test_a_report_of_two_formats_is_wrong_usage(job: Path) -> None:
    done = refine(job, "--report", str(job / "report"), "--to", "voc")
    assert done.exit_code == 2
    assert "--report compares masks of one format" in done.stderr


def test_every_format_has_its_name_on_the_command_line() -> None:
    assert sorted(FORMAT_NAMES) == sorted(entry.name for entry in FORMATS)
