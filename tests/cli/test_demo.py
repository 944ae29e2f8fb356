"""``transfiner-refine demo``: from nothing to a page with a real detector's masks, before and after."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from transfiner_refine.cli import main

ROOT = Path(__file__).parents[2]


def test_the_demo_ends_with_a_page_and_what_to_play_with(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = CliRunner().invoke(main, ["demo", "-o", str(folder), "--json"])
    assert (done.exit_code, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert (said["images"], said["instances"]) == (5, 7)
    assert Path(said["page"]).is_file()
    before, after = (json.loads((folder / name).read_text()) for name in ("detections.json", "refined.json"))
    assert [record["score"] for record in before] == [record["score"] for record in after]
    assert sum(a["segmentation"] != b["segmentation"] for a, b in zip(before, after, strict=True)) >= 4
    again = CliRunner().invoke(main, ["demo", "-o", str(folder)])
    assert (again.exit_code, again.stdout) == (1, "")
    assert "exists already and is not empty; give another --output, or --overwrite" in again.stderr


def test_a_wheel_carries_the_demo_and_its_attribution() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    text = (ROOT / "examples" / "ATTRIBUTION.md").read_text()
    for folder in ("examples/images", "examples/detector"):
        assert f'"{folder}" = "transfiner_refine/demo_data' in settings
    for photo in (*ROOT.glob("examples/images/*"), *ROOT.glob("examples/detector/images/*")):
        assert f"`{photo.name}`" in text
