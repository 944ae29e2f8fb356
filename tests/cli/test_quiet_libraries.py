"""What the libraries have to say of damaged files stays out of the command's output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_with_damaged_metadata_leaves_nothing_on_stderr(tmp_path: Path, workers: int) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "1.png", exif=b"Exif\0\0MM\0*garbage")
    record = {"image_id": 1, "category_id": 1, "segmentation": {"size": [6, 8], "counts": [10, 5, 33]}}
    (tmp_path / "masks.json").write_text(json.dumps([record]))
    paths = ["--images", "images", "--masks", "masks.json", "--output", "out.json"]
    command = [sys.executable, "-c", "from transfiner_refine.cli import main; main()", "refine", *paths]
    done = subprocess.run(
        [*command, "--dry-run", "--workers", str(workers)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
