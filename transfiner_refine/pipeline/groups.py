"""A run on several cards, groups of cores or machines: whole images go to processes that hold a refiner each.

The run reads the source and keeps the one journal. A process does with a few images what a run does with all, and
answers with what its journal says of them, which the run takes into its own. So nothing depends on who refined an
image, and what counts as done is the same as in any run.
"""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from transfiner_refine.errors import DeviceError, InputError, MaskRefineError
from transfiner_refine.formats.records import ImageRecord, RecordFault, Source
from transfiner_refine.model.weights import find_weights
from transfiner_refine.pipeline.batches import AnyRefiner
from transfiner_refine.pipeline.fingerprint import refiner_entries
from transfiner_refine.pipeline.journal import Journal, Recalled
from transfiner_refine.pipeline.prepare import CRASHED, InstanceFault, PreparedImage, Preparing, Selection
from transfiner_refine.pipeline.run import Ahead, Outcome, Run, default_workers
from transfiner_refine.pipeline.shards import Shard, items_of
from transfiner_refine.pipeline.workers import Pending, WorkerPool, not_handed_over
from transfiner_refine.refine.engine import usable_cores

CORES_A_GROUP = 8  # beyond, Python's lock keeps the threads of one process waiting for one another
_BATCHES_A_CHUNK = (
    4  # on a card, whose last batch is seldom full; on a CPU images are spread better in small chunks
)
_AHEAD = 2  # chunks a process, so that it never waits for the run


class Met(NamedTuple):
    """An image as the run has met it, before it goes to a process."""

    position: int
    item: ImageRecord
    recalled: Recalled


Chunk = Sequence[Met]


class RefinerFacts(NamedTuple):
    """What the run has to know of the refiners, which it does not hold."""

    fingerprint: Mapping[str, str]
    chunk: int  # instances that go to a process at a time


def given(refiner: AnyRefiner) -> AnyRefiner:
    """``Refining.load`` of a refiner that is there already."""
    return refiner


class Executor(Protocol):
    """Has chunks refined somewhere else; ``size`` processes at a time."""

    size: int

    @property
    def facts(self) -> RefinerFacts:
        """Of the refiner of one of the processes, which all have the same; raises what loading it has raised."""

    def submit(self, chunk: Chunk) -> None:
        """Has a chunk refined."""

    def next_done(self) -> tuple[Chunk, bytes | str]:
        """A chunk that is done, with its journal's lines, or how the processes ended that it was tried in."""


def refine_apart(
    source: Source,
    executor: Executor,
    *,
    journal: Journal,
    strict: bool = False,
    progress: bool | Callable[[int, int], object] = False,
    shard: Shard | None = None,
) -> Outcome:
    """``refine_source`` with refiners that an executor has."""
    run = Run(journal, source, strict=strict, progress=progress, shard=shard)
    with run:
        run.recall(_refined(items_of(source, shard), journal, executor))
    return run.outcome()


def _refined(
    items: Iterable[tuple[int, ImageRecord | RecordFault]], journal: Journal, executor: Executor
) -> Iterator[Ahead]:
    """Has everything refined that is not done yet, and gives what the journal knows then, in no order.

    Which images go together follows from the source alone, so that a run that is resumed has the same batches. Two
    chunks a process are on their way at a time, so memory does not grow with the source.
    """
    chunk: list[Met] = []
    running = instances = 0
    chunk_size = executor.facts.chunk

    def submit(chunk: Chunk) -> None:
        nonlocal running
        executor.submit(chunk)
        running += 1

    def taken() -> Iterator[Ahead]:
        nonlocal running
        done, answer = executor.next_done()
        running -= 1
        if isinstance(answer, str) and len(done) > 1:  # one of them is to blame
            for each in done:
                submit([each])
            return
        if isinstance(answer, str):
            reason, (met,) = f"refining it crashed the process ({answer})", done
            error = InputError(reason, file=met.item.path, remedy=CRASHED)
            fault = InstanceFault(error, _left(met).indexes, whole_image=True)
            journal.note_others(met.recalled.identity, False, (), (fault,))
            answer = b""
        journal.absorb(answer.splitlines(keepends=True))
        journal.commit()
        for position, item, recalled in done:
            yield Ahead(position, item, journal.recall(item, recalled.identity))

    for position, item in items:
        if isinstance(item, RecordFault):
            yield Ahead(position, item, Recalled(0))
            continue
        met = Met(position, item, journal.recall(item))
        instances += len(item.indexes)
        if met.recalled.done.issuperset(item.indexes):
            yield Ahead(*met)
        else:
            chunk.append(met)
        if instances >= chunk_size and chunk:
            while running >= _AHEAD * executor.size:
                yield from taken()
            submit(chunk)
        if instances >= chunk_size:
            chunk, instances = [], 0
    if chunk:
        submit(chunk)
    while running:
        yield from taken()


def _left(met: Met) -> ImageRecord:
    """The part of an image that is not done yet."""
    return met.item.without(met.recalled.done) if met.recalled.done else met.item


@dataclass
class Refining:
    """What a process does: refines chunks with a refiner that it loads once; the task of a ``WorkerPool``.

    Attributes:
        load: gives the refiner; pickled.
        weights: name or file of its weights, None where it was handed over.
        selection, max_image_pixels, workers: as for ``refine_source``, in each process.
        size: number of processes on this machine.
        cards: CUDA devices that there are, one for each process; 0 for groups of cores.
    """

    load: Callable[[], AnyRefiner]
    weights: str | Path | None
    selection: Selection
    max_image_pixels: int
    workers: int | None
    size: int = 1
    cards: int = 0
    in_threads = False

    def begin(self, number: int) -> None:
        """Gives the process its card and its share of the cores."""
        if self.cards:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            named = visible[number] if len(visible) > number and visible[0] else str(number)
            os.environ["CUDA_VISIBLE_DEVICES"] = named
        with suppress(AttributeError, OSError):
            cores = sorted(os.sched_getaffinity(0))
            share = cores[number * len(cores) // self.size : (number + 1) * len(cores) // self.size]
            os.sched_setaffinity(0, share or cores)

    def __call__(self, chunk: Chunk | None) -> RefinerFacts | bytes:
        """The journal's lines of a chunk; for None the facts of the refiner."""
        if chunk is None:
            device, batch = getattr(self._refiner, "device", "cpu"), self._refiner.batch_size
            entries = refiner_entries(
                self._refiner, None if self.weights is None else find_weights(self.weights)
            )
            return RefinerFacts(entries, batch * (1 if device == "cpu" else _BATCHES_A_CHUNK))
        images = [_left(met) for met in chunk]
        identities = {
            image.indexes[0]: met.recalled.identity for image, met in zip(images, chunk, strict=True)
        }
        journal = Journal(0, identities=identities)
        with Run(journal) as run:
            run.refine(enumerate(images), self._decoders, self._refiner)
        return journal.records()

    def crashed(self, _: Chunk | None, how: str | None) -> str:
        return how or "out of memory"

    @cached_property
    def _refiner(self) -> AnyRefiner:
        return self.load()

    @cached_property
    def _decoders(self) -> WorkerPool[PreparedImage]:
        """Processes of this process, that end with it."""
        workers = default_workers(self._refiner) if self.workers is None else self.workers
        return WorkerPool(workers, Preparing(self.selection, self.max_image_pixels))


class ProcessGroups:
    """An executor of processes on this machine; a context in which they live."""

    def __init__(self, task: Refining, gpus: int | str, device: str) -> None:
        """Takes ``gpus`` and ``device`` as ``refine_files`` does; raises DeviceError where they cannot be had."""
        size, cards = _group_count(gpus, device)
        task = replace(task, size=size, cards=cards)
        try:
            pickle.dumps(task)
        except Exception as error:
            raise not_handed_over(error) from error
        self.size = task.size
        self._pool: WorkerPool[RefinerFacts | bytes | str] = WorkerPool(task.size, task)
        self._running: deque[Pending[RefinerFacts | bytes | str]] = deque()

    def __enter__(self) -> ProcessGroups:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(*error)

    @cached_property
    def facts(self) -> RefinerFacts:
        found = self._pool.submit(None).result()
        if isinstance(found, RefinerFacts):
            return found
        raise MaskRefineError(f"loading the refiner crashed the process ({found!s})")

    def submit(self, chunk: Chunk) -> None:
        self._running.append(self._pool.submit(chunk))

    def next_done(self) -> tuple[Chunk, bytes | str]:
        while (done := next((each for each in self._running if each.answer is not None), None)) is None:
            self._pool.wait()
        self._running.remove(done)
        answer = done.result()
        assert isinstance(answer, (bytes, str))
        return done.item, answer


def _group_count(gpus: int | str, device: str) -> tuple[int, int]:
    """How many processes ``gpus`` asks for ("all" or a number), and how many CUDA devices there are for them.

    Raises:
        DeviceError: there are not as many, or ``device`` names one of them.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(
            f"{gpus} GPUs and the device {device!r} contradict each other", remedy="leave one out"
        )
    cards = 0
    if device != "cpu":
        from transfiner_refine.refine.engine import cuda_devices

        cards = cuda_devices()
        if device == "cuda" and not cards:
            raise DeviceError(
                "this machine has no CUDA device", remedy="leave --device out for groups of cores"
            )
    there = cards or usable_cores()
    if gpus == "all":
        return cards or max(1, usable_cores() // CORES_A_GROUP), cards
    if not (isinstance(gpus, int) or gpus.isdecimal()) or not int(gpus) >= 1:
        raise DeviceError(f"{gpus!r} is no number of GPUs", remedy='give "all" or a number from 1 on')
    if int(gpus) > there:
        kind = "CUDA devices" if cards else "cores, and no CUDA device"
        raise DeviceError(
            f"{gpus} processes, but this machine has {there} {kind}", remedy=f"give up to {there}"
        )
    return int(gpus), cards
