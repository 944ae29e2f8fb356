"""Ten thousand broken and hostile inputs: no crash, no hang, no memory without bound, nothing lost or changed silently.

The law is in ``law.py``, the inputs are made by ``*_cases.py`` from a number each, and ``worker.py`` tries them in a
process of its own, with a limit on the memory it may take and on the time one input may take.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")
FAMILIES = [
    "records", "document", "text", "image", "png", "format", "conversion", "segmentation", "evaluation", "training",
    "mutant",
]  # fmt: skip


def fuzz(*families: str, first: int, count: int) -> int:
    """Tries ``count`` inputs of each family and says how many there were; fails with what reproduces a fault."""
    chosen = [argument for family in families for argument in ("--family", family)]
    done = subprocess.run(
        [sys.executable, str(WORKER), *chosen, "--seed", str(first), "--count", str(count)],
        capture_output=True,
        text=True,
        check=False,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    for failure in (entry for entry in told if "failure" in entry):
        pytest.fail(f"{failure['title']}\n{failure['failure']}\n{reproduce(failure)}")
    if done.returncode:  # a crash or a hang, on the input that was begun last
        pytest.fail(f"exit code {done.returncode}\n{done.stderr[-4000:]}\n{reproduce(told[-1])}")
    return int(sum(told[-1]["outcomes"].values()))


def reproduce(entry: dict[str, object]) -> str:
    return f"python tests/fuzz/worker.py --family {entry['family']} --seed {entry['seed']} --keep case"


def test_about_three_hundred_hostile_inputs_of_all_kinds_keep_the_law() -> None:
    assert fuzz(*FAMILIES, first=0, count=27) == 297


@pytest.mark.slow
def test_fifteen_hundred_mutants_of_all_formats_keep_the_law_in_every_command() -> None:
    assert sum(fuzz("mutant", first=first, count=250) for first in range(5000, 6500, 250)) == 1500


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES[:-1])
def test_ten_thousand_hostile_inputs_keep_the_law(family: str) -> None:
    assert sum(fuzz(family, first=first, count=250) for first in range(1000, 2000, 250)) == 1000
