"""``refine_files`` with a refiner that needs no network, as a program: to be killed, and run on full disks.

python quick_run.py FOLDER OPTIONS, where OPTIONS is a JSON object of arguments of ``refine_files``, and of
"delay" (seconds a batch) and "batch_size" of the refiner; "signal_in_writing" is a signal that the program
gets when all of the output is in the draft, but not on the disk, "signal_at_the_end" one that it gets when the output
has its name. Prints the summary; errors as the command line does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import MaskRefineError
from transfiner_refine.masks import MaskWindow
from transfiner_refine.pipeline import Summary, refine_files


class Stripes:
    """Takes out of each mask the rows at which its photo is darkest on the left: depends on photo and mask."""

    def __init__(self, batch_size: int = 4, delay: float = 0.0) -> None:
        self.batch_size, self.delay = batch_size, delay

    def refine_windows(
        self, images: Sequence[NDArray[np.uint8]], masks: Sequence[MaskWindow], image_index: Sequence[int]
    ) -> list[MaskWindow]:
        time.sleep(self.delay)
        refined = []
        for mask, index in zip(masks, image_index, strict=True):
            edge = images[index][mask.y : mask.y + mask.values.shape[0], mask.x].sum(1)
            values = (mask.values >= 0.5) & (edge > edge.min())[:, None]
            refined.append(MaskWindow(values, mask.x, mask.y, mask.image_size))
        return refined


def main(folder: Path, options: dict[str, object]) -> int:
    refiner = Stripes(options.pop("batch_size", 4), options.pop("delay", 0.0))  # type: ignore[arg-type]
    number = options.pop("signal_in_writing", None)
    if number is not None:
        os.fsync = lambda _: os.kill(os.getpid(), number)  # type: ignore[arg-type]
    last = options.pop("signal_at_the_end", None)

    def then(_: Summary, was_written: bool) -> None:
        print(f"was written before: {was_written}", file=sys.stderr)
        if last is not None:
            os.kill(os.getpid(), last)  # type: ignore[arg-type]

    if last is not None or options.pop("then", False):
        options["then"] = then
    masks = options.pop("masks", "masks.json")
    output = folder / str(options.pop("output", "out.json"))
    try:
        summary = refine_files(folder / "images", folder / str(masks), output, refiner=refiner, **options)  # type: ignore[arg-type]
    except MaskRefineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(stop, file=sys.stderr)
        return 130
    print("\n".join(summary.lines()))
    for error in summary.errors:
        print(error, file=sys.stderr)
    return summary.exit_code


if __name__ == "__main__":
    print(f"pid {os.getpid()}", flush=True)
    import quick_run  # so that other processes find its refiner

    sys.exit(quick_run.main(Path(sys.argv[1]), json.loads(sys.argv[2])))
