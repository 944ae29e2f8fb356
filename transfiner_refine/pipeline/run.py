"""A source through a refiner in three stages: prepare ahead, refine, and encode and write down behind."""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, RecordFault, Source
from transfiner_refine.images import MAX_IMAGE_PIXELS
from transfiner_refine.masks import MaskWindow
from transfiner_refine.pipeline.batches import ImageToRefine, batches
from transfiner_refine.pipeline.contract import AnyRefiner, as_mask_refiner
from transfiner_refine.pipeline.decoding import DecodingPool
from transfiner_refine.pipeline.ledger import Ledger
from transfiner_refine.pipeline.memory import OomSplittingRefiner
from transfiner_refine.pipeline.prepare import Preparing
from transfiner_refine.pipeline.read_ahead import ImageAhead, read_ahead
from transfiner_refine.pipeline.selection import Selection
from transfiner_refine.pipeline.summary import Summary
from transfiner_refine.pipeline.tally import Place, Tally

__all__ = ["Outcome", "changed_share", "default_workers", "mean_share", "refine_source"]

_BATCHES_BEHIND = (
    1  # refined and not written down yet, while the next is refined; more would be lost by a kill
)
_NOTES_AT_ONCE = 64  # images and batches written down together at most
_DRY_BATCH = 32
_MOST_WORKERS = 16


@dataclass(frozen=True)
class Outcome:
    """What refining gave, before anything is written.

    Attributes:
        masks: refined masks by ``Instance.index``, each read where it is asked for.
        changed_shares: [instances] float64: changed pixels / pixels of the coarse mask's box; NaN where an
            instance has no refined mask.
        summary: the tally.
    """

    masks: Mapping[int, Mask]
    changed_shares: NDArray[np.float64]
    summary: Summary


def refine_source(
    source: Source,
    refiner: AnyRefiner | None,
    selection: Selection | None = None,
    *,
    ledger: Ledger | None = None,
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
        ledger: where results are kept and what is done already is found; None for memory.
        workers: processes that decode images; 0 for threads of this process, None as ``default_workers`` says.
        max_image_pixels: photos with more pixels are not decoded.
        strict: stop at the first thing that is wrong.
        progress: a bar on stderr, if that is a terminal.

    Returns:
        Masks and tally, the same for every batch size, number of workers and interruption.

    Raises:
        InputError: with ``strict``, the first fault.
        OSError: the ledger cannot be written.
    """
    ledger = Ledger(source.num_instances) if ledger is None else ledger
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
    progress_of = _Progress(bar)
    tally = Tally(summary, ledger, strict=strict, noting=refiner is not None)
    workers = default_workers(refiner) if workers is None else workers
    how = Preparing(selection or Selection(), max_image_pixels)
    with bar, DecodingPool(workers, how) as pool, _Behind() as behind:
        if refiner is None:
            items = read_ahead(source, ledger, pool, lambda: _DRY_BATCH)
            for _, _, prepared in _to_refine(items, tally, behind, progress_of):
                progress_of.refined(len(prepared.chosen))
                summary.refined += len(prepared.chosen)
        else:
            fitting = OomSplittingRefiner(as_mask_refiner(refiner), _say, progress_of.refined)
            items = read_ahead(source, ledger, pool, lambda: fitting.batch_size)
            _refine(_to_refine(items, tally, behind, progress_of), fitting, tally, behind, progress_of)
    tally.close()
    summary.mean_changed_share = mean_share(ledger.changed_shares)
    return Outcome(ledger.masks, ledger.changed_shares, summary)


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


class _Progress:
    """A progress bar of instances, whose rate and remaining time are those of refining."""

    def __init__(self, bar: tqdm[None]) -> None:
        self._bar = bar

    def refined(self, instances: int) -> None:
        """Counts instances that took their time."""
        self._bar.update(instances)

    def passed(self, instances: int) -> None:
        """Counts instances that needed no refining, or were refined before an interruption."""
        if not self._bar.disable:
            self._bar.initial += instances
            self._bar.update(instances)


class _Behind:
    """Writes down in a thread, in order, what the refining thread hands over, while that goes on.

    The first failure is raised in the refining thread when it hands over the next batch, or at the end; nothing
    is written down after it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "transfiner-encode")
        self._notes: list[Callable[[], None]] = []
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def __enter__(self) -> _Behind:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        """Has all that was noted written down.

        Raises:
            Exception: whatever an earlier note raised.
        """
        while self._waiting and (len(self._waiting) >= _BATCHES_BEHIND or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._submit()

    def _submit(self) -> None:
        notes, self._notes = self._notes, []
        self._waiting.append(self._thread.submit(self._write_down, notes))

    def _write_down(self, notes: list[Callable[[], None]]) -> None:
        for note in notes:
            if self._failed:
                return
            try:
                note()
            except BaseException:
                self._failed = True
                raise


def _to_refine(
    items: Iterable[tuple[int, ImageAhead | RecordFault]], tally: Tally, behind: _Behind, progress: _Progress
) -> Iterator[ImageToRefine]:
    """Notes what needs no refiner and lets through the images that do."""
    for position, item in items:
        if isinstance(item, RecordFault):
            progress.passed(item.instances)
            behind.note(partial(tally.record_fault, position, item))
            continue
        record, prepared = item.record, item.prepared
        if prepared is None:
            progress.passed(len(record.indexes))
            behind.note(partial(tally.image, position, item))
            continue
        progress.passed(len(record.indexes) - len(prepared.chosen))
        without_pixels = replace(item, prepared=replace(prepared, pixels=None, chosen=()))
        behind.note(partial(tally.image, position, without_pixels))
        if prepared.chosen:
            yield position, record, prepared


def _refine(
    images: Iterator[ImageToRefine],
    refiner: OomSplittingRefiner,
    tally: Tally,
    behind: _Behind,
    progress: _Progress,
) -> None:
    """Refines batch by batch."""

    def refuse(place: Place, error: InputError) -> None:
        progress.passed(1)
        behind.note(partial(tally.refused, place, error))

    for batch in batches(images, lambda: refiner.batch_size, refuse):
        refined = refiner.refine(batch)
        behind.note(partial(_write_down, batch.places, batch.masks, refined, tally))
        del batch
        behind.hand_over()


def changed_share(coarse: Mask | MaskWindow, refined: Mask) -> float:
    """Pixels whose label changed / pixels of the coarse mask's box; a soft mask counts from 0.5 on."""
    before = coarse if isinstance(coarse, Mask) else Mask.from_window(coarse)
    x0, y0, x1, y1 = before.box
    return before.differing(refined) / ((x1 - x0) * (y1 - y0))


def _write_down(
    places: list[Place],
    coarse_masks: list[Mask | MaskWindow],
    refined: list[Mask | InputError],
    tally: Tally,
) -> None:
    Mask.encode([mask for mask in refined if isinstance(mask, Mask)])
    for place, coarse, mask in zip(places, coarse_masks, refined, strict=True):
        if isinstance(mask, InputError):
            tally.refused(place, mask)
        elif mask.area:
            tally.mask(place[1], mask, changed_share(coarse, mask))
        else:
            tally.mask(place[1], None, 0.0)
    tally.batch_done()


def _say(text: str) -> None:
    tqdm.write(f"transfiner-refine: {text}", file=sys.stderr)
