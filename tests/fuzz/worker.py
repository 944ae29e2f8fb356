"""Makes hostile inputs and tries the law on each; the program that ``test_fuzz.py`` runs in processes of its own.

Before each input it prints the input's number, so that a crash of the interpreter or a hang is known by the number
it happened on. To look into one:

    python tests/fuzz/worker.py --family png --seed 17 --keep case
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import resource
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import coco_cases
import conversion_cases
import format_cases
import image_cases
import mutant_cases
import numpy as np
import png_cases
import reader_cases
from law import Case, try_case

# a family makes an input, to be refined and checked; or tries one itself and says what came of it
FAMILIES: dict[str, Callable[[Path, np.random.Generator], Case | str]] = {
    "records": coco_cases.records_case,
    "document": coco_cases.document_case,
    "text": coco_cases.text_case,
    "image": image_cases.image_case,
    "png": png_cases.png_case,
    "format": format_cases.format_case,
    "conversion": conversion_cases.conversion_trial,
    "segmentation": reader_cases.segmentation_trial,
    "evaluation": reader_cases.evaluation_trial,
    "training": reader_cases.training_trial,
    "mutant": mutant_cases.mutant_trial,
}
SECONDS = 20  # for one input; the slowest take a tenth of it on one core
MEMORY = 1 << 30  # bytes on top of what the imported libraries take
_COMMAND_SHARE = 0.1  # of the inputs are also given to the command
_IN_MEMORY = Path("/dev/shm")  # the package waits for the disk to have written, the tests need not


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", choices=list(FAMILIES), action="append", required=True)
    parser.add_argument("--seed", type=int, required=True, help="Number of the first input.")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="Folder that is to keep the inputs and outputs.")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow warns of damage that comes out as errors or does no harm
    faulthandler.enable()
    limit_memory()
    outcomes: Counter[str] = Counter()
    for family in arguments.family:
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            print(json.dumps({"family": family, "seed": seed}), flush=True)
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            with tempfile.TemporaryDirectory(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None) as scratch:
                folder = arguments.keep / family / str(seed) if arguments.keep else Path(scratch)
                outcomes[_outcome(family, seed, folder)] += 1
            faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"outcomes": outcomes}), flush=True)
    return 1 if outcomes["broken"] else 0


def _outcome(family: str, seed: int, folder: Path) -> str:
    rng = np.random.default_rng([list(FAMILIES).index(family), seed])
    title = family
    try:
        (folder / "output").mkdir(parents=True)
        case = FAMILIES[family](folder, rng)
        if isinstance(case, str):
            return case
        title = case.title
        return try_case(
            case,
            folder / "output",
            batch_size=int(rng.integers(1, 9)),
            command=bool(rng.random() < _COMMAND_SHARE),
        )
    except Exception:
        failure = {"seed": seed, "family": family, "title": title, "failure": traceback.format_exc()}
        print(json.dumps(failure), flush=True)
        return "broken"


def limit_memory() -> None:
    """Makes allocations fail that the package should never ask for."""
    with Path("/proc/self/statm").open() as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


if __name__ == "__main__":
    sys.exit(main())
