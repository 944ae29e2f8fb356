"""A source through a refiner in three stages: prepare ahead, refine, and encode and write down behind."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from transfiner_refine.errors import InputError
from transfiner_refine.formats.records import ImageRecord, RecordFault, Source
from transfiner_refine.images import MAX_IMAGE_PIXELS
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.pipeline.batches import (
    AnyRefiner,
    ImageToRefine,
    OomSplittingRefiner,
    batches,
)
from transfiner_refine.pipeline.journal import Journal, Recalled
from transfiner_refine.pipeline.prepare import (
    InstanceFault,
    PreparedImage,
    Preparing,
    Selection,
    system_fault,
)
from transfiner_refine.pipeline.shards import Shard, items_of
from transfiner_refine.pipeline.summary import Summary
from transfiner_refine.pipeline.workers import Pending, WorkerPool
from transfiner_refine.refine.engine import usable_cores

Progress = Callable[[int, int], object]
_BATCHES_AHEAD = 4
_PIXELS_AHEAD = 1 << 26  # decoded or being decoded, 3 bytes each; a single larger image is let through alone
_NOTES_AT_ONCE = 64  # images and batches written down together at most
_DRY_BATCH = 32
_MOST_WORKERS = 16


@dataclass(frozen=True)
class Outcome:
    """What refining gave, before anything is written."""

    masks: Mapping[int, Mask]  # those that changed, by ``Instance.index``, each read where it is asked for
    # [instances]: changed pixels / pixels of the coarse mask's box; NaN where an instance has no refined mask
    changed_shares: NDArray[np.float64]
    summary: Summary


def refine_source(
    source: Source,
    refiner: AnyRefiner | None,
    selection: Selection | None = None,
    *,
    journal: Journal | None = None,
    workers: int | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    strict: bool = False,
    progress: bool | Progress = False,
    shard: Shard | None = None,
) -> Outcome:
    """Refines what a source holds; bad records and images are counted and do not stop the others.

    Args:
        source: the masks.
        refiner: None for a dry run, which reads and decodes everything all the same.
        selection: what to refine, None for all but crowds and empty masks.
        journal: where results are kept and what is done already is found; None for memory.
        workers: processes that decode images; 0 for threads of this process, None as ``default_workers`` says.
        max_image_pixels: images with more pixels are not decoded.
        strict: stop at the first thing that is wrong.
        progress: a bar on stderr, if that is a terminal; or a function of instances done and of all.
        shard: refine the images of this part only, and count no others.

    Returns:
        Masks and summary, the same for every batch size, number of workers and interruption.

    Raises:
        InputError: with ``strict``, the first fault.
        OutputError: the journal cannot be written.
        OSError: the system refuses what the inputs need (open files, memory, a disk that fails).
    """
    journal = Journal(source.num_instances) if journal is None else journal
    workers = default_workers(refiner) if workers is None else workers
    run = Run(journal, source, is_dry=refiner is None, strict=strict, progress=progress, shard=shard)
    with run, WorkerPool(workers, Preparing(selection or Selection(), max_image_pixels)) as pool:
        run.refine(items_of(source, shard), pool, refiner)
    return run.outcome()


def mean_share(changed_shares: NDArray[np.float64], without: Iterable[int] = ()) -> float:
    """Mean of the shares that are not NaN, 0 if there are none; summed exactly, so that no order shows in it."""
    shares = changed_shares.copy()
    shares[list(without)] = np.nan
    shares = shares[~np.isnan(shares)]
    return math.fsum(shares) / len(shares) if len(shares) else 0.0


def default_workers(refiner: AnyRefiner | None) -> int:
    """Decoding processes for a refiner: one beside a CPU, one for each core but one, up to 16, beside a GPU.

    On a CPU the network needs seconds for the ten masks of an image that a process prepares in a few
    milliseconds; the process is there because a decoder that crashes then takes nothing else with it.
    """
    on_cpu = getattr(refiner, "device", "cpu") == "cpu"
    return 1 if on_cpu else max(1, min(_MOST_WORKERS, usable_cores() - 1))


def changed_share(coarse: Mask | MaskWindow, refined: Mask) -> float:
    """Pixels whose label changed / pixels of the coarse mask's box; a soft mask counts from 0.5 on."""
    before = coarse if isinstance(coarse, Mask) else Mask.from_window(coarse)
    x0, y0, x1, y1 = before.box
    return before.differing(refined) / ((x1 - x0) * (y1 - y0))


class Ahead(NamedTuple):
    """What stands at a position of the source, and how much of what is held ahead is its own."""

    position: int
    item: ImageRecord | RecordFault
    recalled: Recalled
    pending: Pending[PreparedImage] | None = None  # the part of an image that an interrupted run has not done
    pixels: int = 0
    instances: int = 0


def read_ahead(
    items: Iterable[tuple[int, ImageRecord | RecordFault]],
    journal: Journal,
    pool: WorkerPool[PreparedImage],
    batch_size: Callable[[], int],
) -> Iterator[Ahead]:
    """Has prepared what is not done yet, and gives everything in the order of the source.

    Ahead are four batches of instances or twice as many images as the pool works on at a time, whichever is more,
    but of large images only as many as fit into ``_PIXELS_AHEAD``. Memory does not grow with the source.
    """
    waiting: deque[Ahead] = deque()
    pixels = instances = 0
    for position, item in items:
        recalled, rest, its_pixels, its_instances = Recalled(0), None, 0, 1
        if isinstance(item, ImageRecord):
            recalled = journal.recall(item)
            left = item.without(recalled.done) if recalled.done else item
            if left.indexes:
                rest, its_pixels, its_instances = left, left.stated_pixels, len(left.indexes)
        while waiting and (
            pixels + its_pixels > _PIXELS_AHEAD
            or (instances >= _BATCHES_AHEAD * batch_size() and len(waiting) >= 2 * pool.size)
        ):
            first = waiting.popleft()
            pixels, instances = pixels - first.pixels, instances - first.instances
            yield first
            del first  # it holds the pixels of an image
        pending = None if rest is None else pool.submit(rest)
        pixels, instances = pixels + its_pixels, instances + its_instances
        waiting.append(Ahead(position, item, recalled, pending, its_pixels, its_instances))
        del pending
    while waiting:
        yield waiting.popleft()


class _Behind:
    """Writes down in a thread, in order, what the refining thread hands over, while that goes on.

    Behind is one batch, for a kill would lose more. The first failure is raised in the refining thread when it hands
    over the next batch, or at the end; nothing is written down after it.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal, self._thread = journal, ThreadPoolExecutor(1, "transfiner-encode")
        self._notes: list[Callable[[], None]] = []
        self._last: Future[None] | None = None

    def close(self, *, raising: bool) -> None:
        """Writes down what is left, after Ctrl-C too: what is refined is worth keeping."""
        with self._thread:
            last = self._submit()
        if raising:
            last.result()

    def note(self, note: Callable[[], None]) -> None:
        """Takes something to be written down with the next batch, or when there is much of it."""
        self._notes.append(note)
        if len(self._notes) >= _NOTES_AT_ONCE:
            self.hand_over()

    def hand_over(self) -> None:
        """Has all that was noted written down; raises whatever an earlier note raised."""
        if self._last is not None:
            self._last.result()
        self._submit()

    def _submit(self) -> Future[None]:
        notes, self._notes = self._notes, []
        self._last = self._thread.submit(self._write_down, notes, self._last)
        return self._last

    def _write_down(self, notes: list[Callable[[], None]], before: Future[None] | None) -> None:
        if before is not None:
            before.result()  # it is done, and raises if it has failed
        for note in notes:
            note()
        self._journal.commit()


def _told(progress: Progress) -> type[tqdm[None]]:
    """A bar that nobody sees, and that tells a function instead."""

    class Told(tqdm):  # type: ignore[misc,type-arg,unused-ignore]
        done = 0

        def __init__(self, **settings: Any) -> None:
            super().__init__(**{**settings, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            progress(self.done, int(self.total or 0))

    return Told


class Run:
    """Tells summary, journal and progress bar what becomes of each instance; a context in which that goes on.

    The order in which it is told does not show in the summary, so that a run that was interrupted, or that had
    another batch size, ends with the same one.

    Args:
        journal: where it is written down.
        source: of a whole run; None for a part of one, which keeps no summary.
        is_dry, strict, progress, shard: see ``refine_source``.
    """

    def __init__(
        self,
        journal: Journal,
        source: Source | None = None,
        *,
        is_dry: bool = False,
        strict: bool = False,
        progress: bool | Progress = False,
        shard: Shard | None = None,
    ) -> None:
        self._strict, self._journal, self._behind = strict, journal, _Behind(journal)
        self._counts_images = shard is not None
        self._summary = Summary(dry_run=is_dry, notes=() if source is None else tuple(source.notes))
        self._summary.images = 0 if source is None or shard is not None else source.num_images
        self._errors: list[tuple[int, int, InputError]] = []
        bar = _told(progress) if callable(progress) else tqdm
        self._bar = bar(
            total=None if source is None else source.num_instances // (shard.of if shard is not None else 1),
            unit=" instances",
            desc="checking" if is_dry else "refining",
            file=sys.stderr,
            disable=None
            if progress and sys.stderr is not None
            else True,  # None: only if stderr is no terminal
            dynamic_ncols=True,
            smoothing=0,  # the mean of the whole run: images differ too much for a recent rate to say when it ends
        )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        with self._bar:
            self._behind.close(raising=kind is None)

    def refine(
        self,
        items: Iterable[tuple[int, ImageRecord | RecordFault]],
        pool: WorkerPool[PreparedImage],
        refiner: AnyRefiner | None,
    ) -> None:
        """Refines what is not done yet, batch by batch; without a refiner only reads it."""
        if refiner is None:
            for image in self._to_refine(read_ahead(items, self._journal, pool, lambda: _DRY_BATCH)):
                self._bar.update(len(image.chosen))
                self._summary.refined += len(image.chosen)
            return
        splitting = OomSplittingRefiner(refiner, _say, self._bar.update)

        def refuse(image: ImageToRefine, instance: int, error: InputError) -> None:
            self._passed(1)
            self._refuse(image, instance, error)

        images = self._to_refine(read_ahead(items, self._journal, pool, lambda: splitting.batch_size))
        for batch in batches(images, lambda: splitting.batch_size, refuse):
            refined = []
            for item, mask in zip(batch, splitting.refine(batch), strict=True):
                if isinstance(mask, InputError):
                    self._refuse(item.image, item.instance, mask)
                else:  # without pixels, which would live until it is written down
                    before = item.mask, item.instance, item.image.identity, item.image.turned
                    refined.append((mask, *before))
            del batch, item
            self._behind.note(partial(self._write_down, refined))
            self._behind.hand_over()

    def recall(self, ahead: Iterable[Ahead]) -> None:
        """The same with what was refined elsewhere, all of which the journal knows."""
        for _ in self._to_refine(ahead):
            raise AssertionError

    def outcome(self) -> Outcome:
        """What was done, at the end of all."""
        summary, shares = self._summary, self._journal.changed_shares
        # a stable sort: of one image, faults of the same kind stay in the order in which they were found
        summary.errors += [error for *_, error in sorted(self._errors, key=lambda fault: fault[:2])]
        summary.refined += int(np.count_nonzero(~np.isnan(shares)))
        summary.passed_through = self._journal.passed_through()
        summary.mean_changed_share = mean_share(shares)
        return Outcome(self._journal, shares, summary)

    def _to_refine(self, ahead: Iterable[Ahead]) -> Iterator[ImageToRefine]:
        """Notes what needs no refiner and lets through the images that do.

        Raises:
            OSError: the system is at fault for what the source could not read.
        """
        for position, item, recalled, pending, *_ in ahead:
            if isinstance(item, RecordFault):
                if (system := system_fault(item.error)) is not None:
                    raise system
                self._summary.images += self._counts_images and item.whole_image
                self._passed(item.instances)
                self._fail(position, item)
                continue
            found = PreparedImage() if pending is None else pending.result()
            self._summary.images += self._counts_images and bool(item.indexes)
            self._passed(len(item.indexes) - len(found.chosen))
            self._summary.images_turned += recalled.turned or found.turned
            for fault in (*recalled.faults, *found.faults):
                self._fail(position, fault)
            others = (recalled.identity, found.turned, found.kept, found.faults)
            if found.kept or found.faults:
                self._behind.note(partial(self._journal.note_others, *others))
            if found.chosen:
                assert found.pixels is not None
                yield ImageToRefine(
                    position, item.path, recalled.identity, found.turned, found.pixels, found.chosen
                )

    def _write_down(self, refined: Sequence[tuple[Mask, Mask | MaskWindow, int, int, bool]]) -> None:
        Mask.encode([mask for mask, *_ in refined])
        for mask, coarse, instance, identity, turned in refined:
            found, share = (mask, changed_share(coarse, mask)) if mask.area else (None, 0.0)
            self._journal.note_mask(instance, identity, turned, found, share)

    def _passed(self, instances: int) -> None:
        """Moves the bar by instances that took no time, so that its rate is that of refining."""
        if not self._bar.disable:
            self._bar.initial += instances
        self._bar.update(instances)

    def _fail(self, position: int, fault: RecordFault | InstanceFault) -> None:
        if self._strict:
            raise fault.error
        # what is found when an image is prepared comes before what the refiner says
        order = fault.indexes[0] if isinstance(fault, InstanceFault) and fault.by_refiner else -1
        self._errors.append((position, order, fault.error))
        self._summary.failed += fault.instances
        self._summary.images_failed += fault.whole_image

    def _refuse(self, image: ImageToRefine, instance: int, error: InputError) -> None:
        fault = InstanceFault(error, (instance,), by_refiner=True)
        self._fail(image.position, fault)
        self._behind.note(partial(self._journal.note_others, image.identity, image.turned, (), (fault,)))


def _say(text: str) -> None:
    if sys.stderr is not None:  # programs without a console have none
        tqdm.write(f"transfiner-refine: {text}", file=sys.stderr)
