"""The walk through the Python API runs from start to end."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from PIL import Image

WALKTHROUGH = Path(__file__).parents[2] / "examples" / "walkthrough.py"


def test_the_walkthrough_runs_and_leaves_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(WALKTHROUGH))
    said = capsys.readouterr().out
    assert "cup: boundary IoU" in said
    assert "Refined 6 of 6 instances in 4 images" in said
    for name in ("before", "after", "explain"):
        assert Image.open(tmp_path / "walkthrough" / f"{name}.png").width >= 600
    assert (tmp_path / "walkthrough" / "report" / "index.html").is_file()


def test_the_notebook_has_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(WALKTHROUGH.parent))
    made = runpy.run_path(str(WALKTHROUGH.with_name("make_notebook.py")))["notebook"]()
    assert WALKTHROUGH.with_suffix(".ipynb").read_text() == made


def test_each_cell_is_marked_for_editors() -> None:
    lines = WALKTHROUGH.read_text().splitlines()
    marks = [line for line in lines if line.startswith("# %%")]
    assert set(marks) == {"# %%", "# %% [markdown]"}
    assert len(marks) >= 10
