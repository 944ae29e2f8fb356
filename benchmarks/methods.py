"""What speed.py compares, behind one call: our engines, another checkout of this project, and other refiners.

Our engines and the other checkout run in processes of their own, so that none gains by sharing one with its caller.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from devsets import warm_up
from numpy.typing import NDArray
from peers import PEERS, Peer

import transfiner_refine
from transfiner_refine.masks import MaskWindow

__all__ = ["BASELINE", "Method", "Stages", "commit_of", "load_baseline", "load_ours", "load_peers"]

BASELINE = "baseline"
"""Name of the other checkout's row."""

_WARM_UP = (40, 200, 600)  # px; small and large objects may take different ways through a refiner

Image = NDArray[np.uint8]
Stages = dict[str, tuple[float, float | None]]
"""By name of the stage: CPU seconds, and floating-point operations if they are known."""


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        name: of its row.
        is_peer: a refiner of another project.
        refine: from an RGB image and a coarse mask to the refined one, and CPU seconds.
        stages: the time by stage of refining these images and masks; None where it is not known.
    """

    name: str
    is_peer: bool
    refine: Callable[[Image, MaskWindow], tuple[MaskWindow, float]]
    stages: Callable[[Sequence[tuple[Image, MaskWindow]]], Stages | None] = lambda _: None


class Worker:
    """A refiner in another process; see ``speed_worker.py``.

    Attributes:
        refusal: why it could not be loaded; None if it was.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._process = process
        self._image: Image | None = None  # that the process has
        imported, self.refusal = self._answer()
        if Path(imported).resolve() != folder.resolve():
            raise click.ClickException(f"{folder}: has no transfiner_refine; {imported} was imported instead")

    def refine(self, image: Image, mask: MaskWindow) -> tuple[MaskWindow, float]:
        if self._image is not image:
            self._ask("image", image)
            self._image = image
        window, seconds = self._ask("refine", _fields(mask))
        return MaskWindow(*window), seconds

    def stages(self, inputs: Sequence[tuple[Image, MaskWindow]]) -> Stages | None:
        return self._ask("stages", [(image, _fields(mask)) for image, mask in inputs])

    def _ask(self, name: str, content: Any) -> Any:
        assert self._process.stdin is not None
        pickle.dump((name, content), self._process.stdin)
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except EOFError as error:
            raise click.ClickException("a refiner's process ended; its error is above") from error


def load_ours(rows: Sequence[str], weights: str | None, stack: ExitStack) -> Iterator[Method]:
    """Our engines; one that the installed package refuses is skipped with a line that says why.

    Args:
        rows: "ENGINE-PRECISION", "PRECISION", or "NAME={…}" with the keyword arguments of ``load_refiner`` as JSON.
        weights: name or path; None for the shipped ones.
        stack: ends the processes.
    """
    folder = Path(transfiner_refine.__file__).parent.parent
    for row in rows:
        name, settings = _settings(row)
        given = {} if weights is None else {"weights": weights}
        worker = stack.enter_context(_started(folder, {"device": "cpu", **given, **settings}))
        if worker.refusal is None:
            yield _warm(name, worker)
        else:
            click.echo(f"skipped {name}: {worker.refusal}")


def load_baseline(folder: Path, stack: ExitStack) -> Method:
    """The refiner of another checkout with its shipped weights, in fp32 on the CPU.

    Raises:
        click.ClickException: it cannot be loaded.
    """
    worker = stack.enter_context(_started(folder, {"device": "cpu", "precision": "fp32"}))
    if worker.refusal is not None:
        raise click.ClickException(f"{folder}: {worker.refusal}")
    return _warm(BASELINE, worker)


def load_peers(names: Sequence[str]) -> Iterator[Method]:
    """Other refiners; one whose package is missing is skipped with a line that says what to install."""
    for name in names:
        peer = PEERS[name]
        if not peer.is_installed():
            click.echo(f"skipped {name}: pip install {peer.package}")
            continue
        warm_up(lambda image, masks, peer=peer: [peer.refine(image, masks[0])])
        yield Method(name, True, _timed(peer))


def commit_of(folder: Path) -> str:
    """The short commit of a checkout, with "+" where files were changed; "unknown" outside git."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short", "HEAD")
    return "unknown" if commit is None else commit + "+" * bool(git("status", "--porcelain", "-uno"))


@contextmanager
def _started(folder: Path, settings: dict[str, Any]) -> Iterator[Worker]:
    """A process with the package of a folder and the same interpreter."""
    script = Path(__file__).with_name("speed_worker.py")
    with subprocess.Popen(
        [sys.executable, str(script), json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(folder.resolve())},
    ) as process:  # which closes the pipes and waits; the worker ends with its input
        yield Worker(process, folder)


def _warm(name: str, worker: Worker) -> Method:
    warm_up(lambda image, masks: [worker.refine(image, masks[0])[0]], _WARM_UP)
    return Method(name, False, worker.refine, worker.stages)


def _timed(peer: Peer) -> Callable[[Image, MaskWindow], tuple[MaskWindow, float]]:
    def refine(image: Image, mask: MaskWindow) -> tuple[MaskWindow, float]:
        begin = time.process_time()
        after = peer.refine(image, mask)
        return after, time.process_time() - begin

    return refine


def _settings(row: str) -> tuple[str, dict[str, Any]]:
    """A row of ours as name and keyword arguments."""
    name, _, keywords = row.partition("=")
    if keywords:
        try:
            return name, dict(json.loads(keywords))
        except (ValueError, TypeError) as error:
            raise click.BadParameter(f"{row}: not a JSON object after = ({error})") from error
    engine, _, precision = name.rpartition("-")
    return name, {"engine": engine, "precision": precision} if engine else {"precision": precision}


def _fields(mask: MaskWindow) -> tuple[Any, int, int, tuple[int, int]]:
    return mask.values, mask.x, mask.y, mask.image_size
