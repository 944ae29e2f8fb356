"""Time and memory on inputs of extreme size, and the smallest of all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("giant.py")


def measured(kind: str, folder: Path) -> dict[str, Any]:
    for part in ("make", "run"):
        done = subprocess.run(
            [sys.executable, str(PROGRAM), kind, str(folder), part],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_an_image_of_twenty_thousand_pixels_square_takes_ten_bytes_a_pixel(tmp_path: Path) -> None:
    found = measured("giant", tmp_path)
    assert (found["instances"], found["errors"]) == (23, 0)
    assert found["peak"] < 10 * 20_000**2


@pytest.mark.slow
def test_ten_thousand_instances_on_one_image_take_no_quadratic_time(tmp_path: Path) -> None:
    found = measured("many", tmp_path)
    assert (found["instances"], found["errors"]) == (10_000, 0)
    assert found["seconds"] < 60  # of processor time; a fifth of that here, and hours if it were quadratic
    assert found["peak"] < 1 << 30
