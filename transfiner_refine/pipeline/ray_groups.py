"""A run on a Ray cluster: actors that hold a refiner each, as an executor of ``groups``."""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transfiner_refine.errors import DeviceError, InputError, MaskRefineError
from transfiner_refine.pipeline.groups import CORES_A_GROUP, Chunk, RefinerFacts, Refining
from transfiner_refine.refine.engine import usable_cores

_ATTEMPTS = 2  # a chunk is not blamed for an actor that was killed by chance


@dataclass
class _Asked:
    """A chunk that an actor has been given."""

    chunk: Chunk
    answer: Any = None  # Ray's reference to it
    attempts: int = 0


@dataclass
class _Actor:
    handle: Any
    asked: deque[_Asked] = field(
        default_factory=deque
    )  # not answered yet, the oldest first; answered in this order


class RayGroups:
    """An executor of actors on a Ray cluster; a context in which they live.

    Of chunks that are on their way and of their answers, each actor has two; nothing else is in Ray's object store, so
    neither it nor this process grows with the number of images. An actor that dies is replaced, and the chunk that it
    was at is tried once more.

    Args:
        task: what an actor does; images and weights must lie at the same paths for all of them, or at URLs.
        gpus: how many actors, each on a GPU of its own; "all" for every GPU of the cluster. Where there is none, each
            gets up to eight cores.
        address: of the cluster: "auto" for the one that runs here, "local" to start one on this machine.

    Raises:
        InputError: Ray is not installed.
        DeviceError: there are not as many GPUs.
        MaskRefineError: there is no cluster at the address.
    """

    def __init__(self, task: Refining, gpus: int | str, address: str) -> None:
        try:
            import ray
        except ImportError as error:
            remedy = "pip install 'transfiner-refine[ray]'"
            raise InputError("Ray is not installed", remedy=remedy) from error
        self._ray: Any = ray
        self._task, self._is_own = task, not ray.is_initialized()
        self._done: deque[tuple[Chunk, bytes | str]] = deque()
        self._actors: list[_Actor] = []
        if self._is_own:
            self._connect(address)
        try:
            self.size, self._resources = self._share(gpus)
            self._actors = [_Actor(self._start()) for _ in range(self.size)]
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> RayGroups:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            self._ray.kill(actor.handle)
        if self._is_own:
            self._ray.shutdown()

    @cached_property
    def facts(self) -> RefinerFacts:
        found = self._ask(self._actors[0].handle.refine.remote(None))
        if isinstance(found, RefinerFacts):
            return found
        raise MaskRefineError(f"loading the refiner crashed the process ({found})")

    def submit(self, chunk: Chunk) -> None:
        self._assign(_Asked(chunk))

    def next_done(self) -> tuple[Chunk, bytes | str]:
        while not self._done:
            asked = {each.answer: actor for actor in self._actors for each in actor.asked}
            (ready, *_), _ = self._ray.wait(list(asked), num_returns=1)
            self._advance(asked[ready])
        return self._done.popleft()

    def _assign(self, asked: _Asked) -> None:
        actor = min(self._actors, key=lambda each: len(each.asked))
        asked.answer = actor.handle.refine.remote(asked.chunk)
        actor.asked.append(asked)

    def _advance(self, actor: _Actor) -> None:
        """Takes an actor's next answer."""
        first = actor.asked.popleft()
        answer = self._ask(first.answer)
        if not isinstance(answer, Exception):
            self._done.append((first.chunk, answer))
            return
        left = list(actor.asked)
        self._ray.kill(actor.handle)  # it may only be out of reach
        actor.handle, actor.asked = self._start(), deque()
        first.attempts += 1
        if first.attempts == _ATTEMPTS:
            self._done.append((first.chunk, type(answer).__name__))
        else:
            left.insert(0, first)
        for each in left:
            self._assign(each)

    def _ask(self, answer: Any) -> Any:
        """An answer, or the error of Ray that there is none; raises what the task has raised."""
        try:
            return self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            return error

    def _connect(self, address: str) -> None:
        settings: dict[str, Any] = {}
        if address == "local":
            paths = os.pathsep.join(path for path in sys.path if path)
            settings = {"runtime_env": {"env_vars": {"PYTHONPATH": paths}}, "include_dashboard": False}
            settings["num_cpus"] = usable_cores()
        try:
            self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **settings)
        except (ConnectionError, ValueError, RuntimeError) as error:
            remedy = "start one with ray start --head, or give --address local"
            raise MaskRefineError(
                f"there is no Ray cluster at {address!r} ({error})", remedy=remedy
            ) from error

    def _share(self, gpus: int | str) -> tuple[int, dict[str, int]]:
        """How many actors there are to be, and what each of them takes."""
        there = self._ray.cluster_resources()
        cards, cores = int(there.get("GPU", 0)), max(1, int(there.get("CPU", 1)))
        if gpus != "all" and not (str(gpus).isdecimal() and int(gpus) >= 1):
            raise DeviceError(f"{gpus!r} is no number of GPUs", remedy='give "all" or a number from 1 on')
        most = cards or cores
        count = (cards or max(1, cores // CORES_A_GROUP)) if gpus == "all" else int(gpus)
        if count > most:
            kind = "GPUs" if cards else "cores, and no GPU"
            raise DeviceError(
                f"{gpus} actors, but the cluster has {most} {kind}", remedy=f"give up to {most}"
            )
        return count, {"num_gpus": 1} if cards else {"num_cpus": min(CORES_A_GROUP, cores // count)}

    def _start(self) -> Any:
        class Refiner:
            """An actor."""

            def __init__(self, task: Refining) -> None:
                self._task = task

            def refine(self, chunk: Chunk | None) -> RefinerFacts | bytes:
                return self._task(chunk)

        return self._ray.remote(Refiner).options(**self._resources).remote(self._task)
