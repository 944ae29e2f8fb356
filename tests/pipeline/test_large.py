"""Memory does not grow with the number of images or masks. The full size is run by benchmarks/large_run.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LARGE_RUN = Path(__file__).parents[2] / "benchmarks" / "large_run.py"


def large_run(folder: Path, images: int, workers: int) -> dict[str, Any]:
    command = [sys.executable, str(LARGE_RUN), "--folder", str(folder), "--images", str(images)]
    done = subprocess.run(
        [*command, "--workers", str(workers)], capture_output=True, text=True, check=True, timeout=1800
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, workers: int) -> None:
    few, many = large_run(tmp_path / "few", 50, workers), large_run(tmp_path / "many", 500, workers)
    assert (few["refined"], many["refined"]) == (5000, 50000)
    # 45,000 more masks are 30 MB of JSON; what is held of a mask is its places in files
    assert many["tree_mb"] - few["tree_mb"] < 25
    assert many["tree_mb"] < 400
