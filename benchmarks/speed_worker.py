"""Serves one refiner to speed.py, over this process's standard input and output: refined masks and CPU seconds.

    PYTHONPATH=CHECKOUT python speed_worker.py '{"precision": "fp32"}'      (keyword arguments of load_refiner)

It answers first with the folder of the package it imported and, if the refiner could not be loaded, the reason. Arrays
and numbers alone are exchanged, because the classes of two checkouts may differ.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import cv2

import transfiner_refine
from transfiner_refine import load_refiner
from transfiner_refine.types import MaskWindow

Mask = tuple[Any, int, int, tuple[int, int]]
"""The fields of a ``MaskWindow``."""


class Server:
    """A refiner and the image that it was sent last."""

    def __init__(self, refiner: Any) -> None:
        self.refiner = refiner
        self.pixels: Any = None

    def image(self, pixels: Any) -> None:
        self.pixels = pixels

    def refine(self, mask: Mask) -> tuple[Mask, float]:
        """The refined mask of the last image, and CPU seconds."""
        window = MaskWindow(*mask)
        begin = time.process_time()
        (after,) = self.refiner.refine_windows([self.pixels], [window], [0])
        seconds = time.process_time() - begin
        return (after.values, after.x, after.y, after.image_size), seconds

    def stages(self, inputs: list[tuple[Any, Mask]]) -> dict[str, tuple[float, float | None]] | None:
        """What the refiner's ``timed_stages`` says of refining these images and masks; None if it has none."""
        if not hasattr(self.refiner, "timed_stages"):
            return None
        with self.refiner.timed_stages() as stages:
            for pixels, mask in inputs:
                self.refiner.refine_windows([pixels], [MaskWindow(*mask)], [0])
        return dict(stages)


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that nothing printed gets among the answers
    cv2.setNumThreads(1)
    settings = json.loads(sys.argv[1])
    refiner, refusal = None, None
    try:
        inspect.signature(load_refiner).bind(**settings)
        refiner = load_refiner(**settings)
    except Exception as error:  # an older checkout may lack anything
        refusal = f"{type(error).__name__}: {error}"
    server = Server(refiner)
    answer: Any = (str(Path(transfiner_refine.__file__).parent.parent), refusal)
    while True:
        pickle.dump(answer, answers)
        answers.flush()
        try:
            name, content = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer = getattr(server, name)(content)


if __name__ == "__main__":
    main()
