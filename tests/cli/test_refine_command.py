"""The command line: help at once, one line an error, the promised exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from transfiner_refine import __version__
from transfiner_refine.cli import main

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

    monkeypatch.setattr(json, "loads", interrupted)  # the user loses patience while the file is read
    done = refine(job)
    assert (done.exit_code, done.stderr) == (130, "transfiner-refine: interrupted\n")
