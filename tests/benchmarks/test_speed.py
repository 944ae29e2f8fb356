"""benchmarks/speed.py on the examples, laid out as a dev-val set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with one set, whose second detection has no true instance."""
    folder = tmp_path / "devval" / "examples"
    folder.mkdir(parents=True)
    (folder / "images").symlink_to(EXAMPLES / "images", target_is_directory=True)
    for source, target in (("truth.json", "annotations.json"), ("detections.json", "coarse_sim.json")):
        (folder / target).write_bytes((EXAMPLES / source).read_bytes())
    match = [{"annotation_id": key} for key in (1, None, 3, 4, 5, 6)]
    (folder / "coarse_sim_match.json").write_text(json.dumps(match))
    return folder.parent


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_scores_are_devval_s_and_times_come_with_their_ratio_to_another_checkout(
    data: Path, tmp_path: Path
) -> None:
    numbers = tmp_path / "speed.json"
    arguments = ["--data", data, "--ours", "fp32", "--ours", "fp128", "--baseline", ROOT, "--json", numbers]
    done = run("speed.py", *arguments, "--peer", "guided filter", "--plots", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "skipped fp128: " in done.stdout
    content = json.loads(numbers.read_text())
    (group,) = content["groups"]
    assert group["count"] == len(content["instances"]) == 5
    assert list(group["methods"]) == ["fp32", "baseline", "guided filter"]
    ours, base = group["methods"]["fp32"], group["methods"]["baseline"]
    assert (ours["iou"], ours["boundary_iou"]) == (base["iou"], base["boundary_iou"])
    assert ours["ratio"] == pytest.approx(ours["ms"] / base["ms"])
    assert {"ms_by_outline.png", "ms_by_roi_side.png"} <= {file.name for file in tmp_path.iterdir()}
    table = run("devval.py", "--data", data, "--precision", "fp32").stdout
    before, after = group["coarse"], ours
    assert f"{100 * before['iou']:.1f} → {100 * after['iou']:.1f}" in table
    assert f"{100 * before['boundary_iou']:.1f} → {100 * after['boundary_iou']:.1f}" in table


def test_a_kind_that_no_set_has_is_named_with_the_kinds_there_are(data: Path) -> None:
    done = run("speed.py", "--data", data, "--kind", "detector")
    assert done.returncode == 1
    assert "no set has coarse masks of kind 'detector'; known: sim" in done.stderr
