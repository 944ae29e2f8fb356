"""What speed.py compares: our engines, another checkout of this project, and other refiners, behind one call."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from devsets import warm_up
from numpy.typing import NDArray
from peers import PEERS

from transfiner_refine import load_refiner
from transfiner_refine.types import MaskRefineError, MaskWindow

__all__ = ["BASELINE", "Method", "commit_of", "load_ours", "load_peers", "started_baseline"]

BASELINE = "baseline"
"""Name of the other checkout's row."""

_WARM_UP = (40, 200, 600)  # px; a large and a small object may take different ways through a refiner

Timed = tuple[MaskWindow, float]


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        name: of its row.
        group: "ours", "baseline" or "peer".
        refine: from an RGB image and a coarse mask to the refined one, and CPU seconds.
        refiner: the loaded refiner, for ours.
    """

    name: str
    group: str
    refine: Callable[[NDArray[np.uint8], MaskWindow], Timed]
    refiner: Any = None


def load_ours(rows: Sequence[str], weights: str | None) -> Iterator[Method]:
    """Our engines; one that the installed package refuses is skipped with a line that says why.

    Args:
        rows: "ENGINE-PRECISION", "PRECISION", or "NAME={…}" with the keyword arguments of ``load_refiner`` as JSON.
        weights: name or path; None for the shipped ones.
    """
    for row in rows:
        name, settings = _settings(row)
        if weights is not None:
            settings = {"weights": weights, **settings}
        settings.setdefault("device", "cpu")
        try:
            inspect.signature(load_refiner).bind(**settings)
        except TypeError as error:
            click.echo(f"skipped {name}: load_refiner has {error}")
            continue
        try:
            refiner = load_refiner(**settings)
        except (MaskRefineError, ImportError) as error:
            click.echo(f"skipped {name}: {error}")
            continue
        yield _timed(name, "ours", _one_window(refiner), refiner)


def load_peers(names: Sequence[str]) -> Iterator[Method]:
    """Other refiners; one whose package is missing is skipped with a line that says what to install."""
    for name in names:
        peer = PEERS[name]
        if peer.is_installed():
            yield _timed(name, "peer", peer.refine)
        else:
            click.echo(f"skipped {name}: pip install {peer.package}")


@contextmanager
def started_baseline(folder: Path) -> Iterator[Method]:
    """The refiner of another checkout, in a process of its own with the same interpreter.

    Raises:
        click.ClickException: the process ended, or imported another package than the folder's.
    """
    worker = Path(__file__).with_name("baseline_worker.py")
    environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
    process = subprocess.Popen(
        [sys.executable, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdin is not None
    assert process.stdout is not None
    held: NDArray[np.uint8] | None = None  # the image the worker has

    def send(name: str, content: Any) -> None:
        pickle.dump((name, content), process.stdin)

    def refine(image: NDArray[np.uint8], mask: MaskWindow) -> Timed:
        nonlocal held
        if held is not image:
            send("image", image)
            held = image
        send("mask", (mask.values, mask.x, mask.y, mask.image_size))
        process.stdin.flush()
        window, seconds = _answer(process)
        return MaskWindow(*window), seconds

    try:
        imported = _answer(process)
        if Path(imported).resolve() != folder.resolve():
            raise click.ClickException(f"{folder}: has no transfiner_refine; {imported} was imported instead")
        warm_up(lambda image, masks: [refine(image, masks[0])[0]], _WARM_UP)
        yield Method(BASELINE, "baseline", refine)
    finally:
        process.stdin.close()
        process.wait()


def commit_of(folder: Path) -> str:
    """The short commit of a checkout, with "+" where files were changed; "unknown" outside git."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short", "HEAD")
    return "unknown" if commit is None else commit + "+" * bool(git("status", "--porcelain", "-uno"))


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


def _one_window(refiner: Any) -> Callable[[NDArray[np.uint8], MaskWindow], MaskWindow]:
    def refine(image: NDArray[np.uint8], mask: MaskWindow) -> MaskWindow:
        (after,) = refiner.refine_windows([image], [mask], [0])
        return after

    return refine


def _timed(
    name: str,
    group: str,
    refine: Callable[[NDArray[np.uint8], MaskWindow], MaskWindow],
    refiner: Any = None,
) -> Method:
    """A refiner of this process, warmed up, with the CPU seconds of each call."""

    def timed(image: NDArray[np.uint8], mask: MaskWindow) -> Timed:
        begin = time.process_time()
        after = refine(image, mask)
        return after, time.process_time() - begin

    warm_up(lambda image, masks: [refine(image, masks[0])], _WARM_UP if group == "ours" else _WARM_UP[:1])
    return Method(name, group, timed, refiner)


def _answer(process: subprocess.Popen[bytes]) -> Any:
    assert process.stdout is not None
    try:
        return pickle.load(process.stdout)
    except EOFError as error:
        raise click.ClickException("the baseline's process ended; its error is above") from error
