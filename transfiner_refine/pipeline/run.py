"""A source through a refiner in three stages: prepare ahead, refine, and encode and write down behind."""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from transfiner_refine.errors import InputError
from transfiner_refine.formats.records import ImageRecord, RecordFault, Source, UnreadSource
from transfiner_refine.images import MAX_IMAGE_PIXELS
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.pipeline.batches import (
    AnyRefiner,
    BatchItem,
    ImageToRefine,
    OomSplittingRefiner,
    batches,
)
from transfiner_refine.pipeline.journal import Journal, Recalled
from transfiner_refine.pipeline.prepare import InstanceFault, PreparedImage, Selection, system_fault
from transfiner_refine.pipeline.summary import Summary
from transfiner_refine.pipeline.workers import Pending, WorkerPool

_BATCHES_AHEAD = 4
_PIXELS_AHEAD = 1 << 26  # decoded or being decoded, 3 bytes each; a single larger image is let through alone
_BATCHES_BEHIND = 1  # refined and not written down yet, while the next is refined; a kill would lose more
_NOTES_AT_ONCE = 64  # images and batches written down together at most
_DRY_BATCH = 32
_MOST_WORKERS = 16
_EMPTIED = "refined mask came out empty, coarse mask kept"


@dataclass(frozen=True)
class Outcome:
    """What refining gave, before anything is written.

    Attributes:
        masks: refined masks by ``Instance.index``, each read where it is asked for.
        changed_shares: [instances] float64: changed pixels / pixels of the coarse mask's box; NaN where an
            instance has no refined mask.
        summary: what the run did.
    """

    masks: Mapping[int, Mask]
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
    progress: bool = False,
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
        progress: a bar on stderr, if that is a terminal.

    Returns:
        Masks and summary, the same for every batch size, number of workers and interruption.

    Raises:
        InputError: with ``strict``, the first fault.
        OutputError: the journal cannot be written.
        OSError: the system refuses what the inputs need (open files, memory, a disk that fails).
    """
    journal = Journal(source.num_instances) if journal is None else journal
    workers = default_workers(refiner) if workers is None else workers
    summary = Summary(images=source.num_images, dry_run=refiner is None)
    bar = tqdm(
        total=source.num_instances,
        unit=" instances",
        desc="checking" if refiner is None else "refining",
        file=sys.stderr,
        disable=None if progress else True,  # None: only if stderr is no terminal
        dynamic_ncols=True,
        smoothing=0,  # the mean of the whole run: images differ too much for a recent rate to say when it ends
    )
    pool, behind = WorkerPool(workers, selection or Selection(), max_image_pixels), _Behind(journal)
    run = _Run(summary, strict, journal, behind, bar)
    with bar, pool, behind:
        if refiner is None:
            for _, _, _, prepared in run.to_refine(read_ahead(source, journal, pool, lambda: _DRY_BATCH)):
                bar.update(len(prepared.chosen))
                summary.refined += len(prepared.chosen)
        else:
            splitting = OomSplittingRefiner(refiner, _say, bar.update)
            run.refine(read_ahead(source, journal, pool, lambda: splitting.batch_size), splitting)
    run.close()
    summary.mean_changed_share = mean_share(journal.changed_shares)
    return Outcome(journal, journal.changed_shares, summary)


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
    device = getattr(refiner, "device", "cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if device == "cpu" else max(1, min(_MOST_WORKERS, cores - 1))


def changed_share(coarse: Mask | MaskWindow, refined: Mask) -> float:
    """Pixels whose label changed / pixels of the coarse mask's box; a soft mask counts from 0.5 on."""
    before = coarse if isinstance(coarse, Mask) else Mask.from_window(coarse)
    x0, y0, x1, y1 = before.box
    return before.differing(refined) / ((x1 - x0) * (y1 - y0))


# position in the source, what is there, what an interrupted run had done of it, the rest; None where there is none
_Item = tuple[int, ImageRecord | RecordFault, Recalled, PreparedImage | None]


def read_ahead(
    source: Source, journal: Journal, pool: WorkerPool, batch_size: Callable[[], int]
) -> Iterator[_Item]:
    """Prepares what is not done yet, and gives everything in the order of the source with its position there.

    Ahead are four batches of instances or twice as many images as the pool works on at a time, whichever is more,
    but of large images only as many as fit into ``_PIXELS_AHEAD``. Memory does not grow with the source.
    """
    waiting: deque[tuple[int, ImageRecord | RecordFault, Recalled, Pending | None, int, int]] = deque()
    pixels = instances = 0

    def first() -> _Item:
        nonlocal pixels, instances
        at, item, recalled, pending, its_pixels, its_instances = waiting.popleft()
        pixels, instances = pixels - its_pixels, instances - its_instances
        return at, item, recalled, None if pending is None else pending.result()

    for position, item in enumerate(source.unread() if isinstance(source, UnreadSource) else source):
        recalled, rest, new_pixels, new_instances = Recalled(0), None, 0, 1
        if isinstance(item, ImageRecord):
            recalled = journal.recall(item)
            left = item.without(recalled.done) if recalled.done else item
            if left.indexes:
                rest, new_pixels, new_instances = left, left.stated_pixels, len(left.indexes)
        while waiting and (
            pixels + new_pixels > _PIXELS_AHEAD
            or (instances >= _BATCHES_AHEAD * batch_size() and len(waiting) >= 2 * pool.size)
        ):
            yield first()
        pending = None if rest is None else pool.submit(rest)
        pixels, instances = pixels + new_pixels, instances + new_instances
        waiting.append((position, item, recalled, pending, new_pixels, new_instances))
    while waiting:
        yield first()


class _Behind:
    """Writes down in a thread, in order, what the refining thread hands over, while that goes on.

    The first failure is raised in the refining thread when it hands over the next batch, or at the end; nothing
    is written down after it.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal, self._thread = journal, ThreadPoolExecutor(1, "transfiner-encode")
        self._notes: list[Callable[[], None]] = []
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def __enter__(self) -> _Behind:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._thread:  # after Ctrl-C too: what is refined is worth keeping
            self._submit()
        while kind is None and self._waiting:
            self._waiting.popleft().result()

    def note(self, note: Callable[[], None]) -> None:
        """Takes something to be written down with the next batch, or when there is much of it."""
        self._notes.append(note)
        if len(self._notes) >= _NOTES_AT_ONCE:
            self.hand_over()

    def hand_over(self) -> None:
        """Has all that was noted written down; raises whatever an earlier note raised."""
        while self._waiting and (len(self._waiting) >= _BATCHES_BEHIND or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._submit()

    def _submit(self) -> None:
        notes, self._notes = self._notes, []
        self._waiting.append(self._thread.submit(self._write_down, notes))

    def _write_down(self, notes: list[Callable[[], None]]) -> None:
        if self._failed:
            return
        try:
            for note in notes:
                note()
            self._journal.commit()
        except BaseException:
            self._failed = True
            raise


class _Run:
    """Tells summary, journal and progress bar what becomes of each instance.

    The order in which it is told does not show in the summary, so that a run that was interrupted, or that had
    another batch size, ends with the same one.
    """

    def __init__(
        self, summary: Summary, strict: bool, journal: Journal, behind: _Behind, bar: tqdm[None]
    ) -> None:
        self._summary, self._strict, self._journal = summary, strict, journal
        self._behind, self._bar = behind, bar
        self._errors: list[tuple[int, int, InputError]] = []

    def to_refine(self, items: Iterable[_Item]) -> Iterator[ImageToRefine]:
        """Notes what needs no refiner and lets through the images that do.

        Raises:
            OSError: the system is at fault for what the source could not read.
        """
        for position, item, recalled, prepared in items:
            if isinstance(item, RecordFault):
                if (system := system_fault(item.error)) is not None:
                    raise system
                self._passed(item.instances)
                self._behind.note(partial(self._fail, position, item.error, item.instances, item.whole_image))
                continue
            chosen = () if prepared is None else prepared.chosen
            self._passed(len(item.indexes) - len(chosen))
            said = PreparedImage()
            if prepared is not None:  # without pixels, which would live until it is written down
                said = PreparedImage(None, prepared.turned, (), prepared.kept, prepared.faults)
            self._behind.note(partial(self._image, position, recalled, said))
            if prepared is not None and chosen:
                yield position, item, recalled.identity, prepared

    def refine(self, items: Iterable[_Item], refiner: OomSplittingRefiner) -> None:
        """Refines batch by batch."""

        def refuse(position: int, identity: int, said: PreparedImage) -> None:
            self._passed(1)
            self._behind.note(partial(self._left, position, identity, said))

        for batch in batches(self.to_refine(items), lambda: refiner.batch_size, refuse):
            refined = refiner.refine(batch)
            without_pixels = [BatchItem(*item[:6], _NO_PIXELS, item.mask) for item in batch]
            del batch
            self._behind.note(partial(self._batch, without_pixels, refined))
            self._behind.hand_over()

    def close(self) -> None:
        """Completes the summary."""
        # a stable sort: of one image, faults of the same kind stay in the order in which they were found
        self._summary.errors += [error for *_, error in sorted(self._errors, key=lambda fault: fault[:2])]

    def _passed(self, instances: int) -> None:
        """Moves the bar by instances that took no time, so that its rate is that of refining."""
        if not self._bar.disable:
            self._bar.initial += instances
            self._bar.update(instances)

    # in the writing thread

    def _image(self, position: int, before: Recalled, now: PreparedImage) -> None:
        for _, has_pixels in before.masks:
            self._mask(has_pixels)
        self._count(position, before)
        self._summary.images_turned += before.turned or now.turned
        self._left(position, before.identity, now)

    def _left(self, position: int, identity: int, said: PreparedImage) -> None:
        self._count(position, said)
        if not self._summary.dry_run:
            self._journal.note_image(identity, said)

    def _batch(self, batch: Sequence[BatchItem], refined: Sequence[Mask | InputError]) -> None:
        Mask.encode([mask for mask in refined if isinstance(mask, Mask)])
        for item, mask in zip(batch, refined, strict=True):
            if isinstance(mask, InputError):
                fault = InstanceFault(mask, (item.instance,), by_refiner=True)
                said = PreparedImage(turned=item.turned, faults=(fault,))
                self._left(item.position, item.identity, said)
                continue
            found, share = (mask, changed_share(item.mask, mask)) if mask.area else (None, 0.0)
            self._mask(found is not None)
            self._journal.note_mask(item.instance, item.identity, item.turned, found, share)

    def _count(self, position: int, said: PreparedImage | Recalled) -> None:
        for _, reason in said.kept:
            self._summary.passed_through[reason] += 1
        for fault in said.faults:
            # what is found when an image is prepared comes before what the refiner says
            order = fault.indexes[0] if fault.by_refiner else -1
            self._fail(position, fault.error, len(fault.indexes), fault.whole_image, order)

    def _fail(
        self, position: int, error: InputError, instances: int, whole_image: bool, order: int = -1
    ) -> None:
        if self._strict:
            raise error
        self._errors.append((position, order, error))
        self._summary.failed += instances
        self._summary.images_failed += whole_image

    def _mask(self, has_pixels: bool) -> None:
        if has_pixels:
            self._summary.refined += 1
        else:
            self._summary.passed_through[_EMPTIED] += 1


_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


def _say(text: str) -> None:
    tqdm.write(f"transfiner-refine: {text}", file=sys.stderr)
