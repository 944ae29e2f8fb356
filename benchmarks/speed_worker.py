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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cv2

import transfiner_refine
from transfiner_refine import load_refiner
from transfiner_refine.masks import MaskWindow

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
        """CPU seconds and operations of each stage of refining these; None for a checkout without engines."""
        if not hasattr(self.refiner, "runs"):
            return None
        with timed_stages(self.refiner) as stages:
            for pixels, mask in inputs:
                self.refiner.refine_windows([pixels], [MaskWindow(*mask)], [0])
        return dict(stages)


_STAGES = {
    "step_input": "cut and resize",
    "paste_into_roi": "paste",
    "patches_if_agreed": "keep rule",
    "blend_tiles": "blend tiles",
}


@contextmanager
def timed_stages(refiner: Any) -> Iterator[dict[str, tuple[float, float | None]]]:
    """Times the functions that ``refine/instance.py`` calls, and the step of each size class beside its operations."""
    from transfiner_refine.refine import instance

    found: dict[str, tuple[float, float | None]] = {}

    def timed(
        function: Callable[..., Any], name: Callable[..., str], work: Callable[..., float | None]
    ) -> Any:
        def call(*args: Any) -> Any:
            begin = time.thread_time()
            result = function(*args)
            taken = time.thread_time() - begin
            seconds, operations = found.get(name(*args), (0.0, None))
            more = work(*args)
            found[name(*args)] = seconds + taken, None if more is None else (operations or 0) + more
            return result

        return call

    @cache
    def operations(size: Any) -> float:
        """Floating-point operations of a step on one RoI."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from transfiner_refine.model.network import MaskTransfiner, RefineStep

        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            step = RefineStep(MaskTransfiner(refiner.config).eval(), size.depth, nodes=size.nodes)
            side = size.side(refiner.config)
            step(torch.zeros(1, 3, side, side, dtype=torch.uint8), torch.zeros(1, 1, side, side))
        return float(counter.get_total_flops())

    usual = {name: getattr(instance, name) for name in _STAGES}
    step = refiner.runs.step
    try:
        for name, stage in _STAGES.items():
            setattr(instance, name, timed(usual[name], lambda *_, stage=stage: stage, lambda *_: None))
        refiner.runs.step = timed(
            step, lambda size, *_: f"step {size.label}", lambda size, *_: operations(size)
        )
        yield found
    finally:
        refiner.runs.step = step
        for name, function in usual.items():
            setattr(instance, name, function)


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
