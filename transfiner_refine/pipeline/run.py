"""A source through a refiner: prepare ahead, batch, refine, encode behind, keep the books."""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from transfiner_refine.formats import RecordFault, RleMask, Source
from transfiner_refine.formats.images import MAX_IMAGE_PIXELS
from transfiner_refine.pipeline.batches import ImageToRefine, batches
from transfiner_refine.pipeline.contract import WindowRefiner
from transfiner_refine.pipeline.decoding import DecodingPool
from transfiner_refine.pipeline.encode import encode
from transfiner_refine.pipeline.ledger import Ledger
from transfiner_refine.pipeline.memory import FittingRefiner
from transfiner_refine.pipeline.prepare import Preparing
from transfiner_refine.pipeline.read_ahead import ImageAhead, read_ahead
from transfiner_refine.pipeline.selection import Selection
from transfiner_refine.pipeline.summary import Summary
from transfiner_refine.pipeline.tally import Place, Tally
from transfiner_refine.types import InputError

__all__ = ["Outcome", "default_workers", "mean_share", "refine_source"]

_ENCODERS = 2  # threads that encode; they take turns at Python's lock, so more would not help

# where an instance stands in the source, and its mask and changed share to be, or why it has none
_Encoding = tuple[Place, "Future[tuple[RleMask | None, float]] | InputError"]


@dataclass(frozen=True)
class Outcome:
    """What refining gave, before anything is written.

    Attributes:
        masks: refined masks by ``Instance.index``, each read where it is asked for.
        changed_shares: [instances] float64: changed pixels / pixels of the coarse mask's box; NaN where an
            instance has no refined mask.
        summary: the tally.
    """

    masks: Mapping[int, RleMask]
    changed_shares: NDArray[np.float64]
    summary: Summary


def refine_source(
    source: Source,
    refiner: WindowRefiner | None,
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
    )
    tally = Tally(summary, ledger, bar, strict=strict, noting=refiner is not None)
    workers = default_workers(refiner) if workers is None else workers
    with bar, DecodingPool(workers, Preparing(selection or Selection(), max_image_pixels)) as pool:
        images = _to_refine(read_ahead(source, ledger, pool), tally)
        if refiner is None:
            for image in images:
                tally.would_refine(len(image.prepared.chosen))
        else:
            _refine(images, FittingRefiner(refiner, _say), tally)
        tally.close()
    summary.mean_changed_share = mean_share(ledger.changed_shares)
    return Outcome(ledger.masks, ledger.changed_shares, summary)


def mean_share(changed_shares: NDArray[np.float64], without: Iterable[int] = ()) -> float:
    """Mean of the shares that are not NaN, 0 if there are none; summed exactly, so that no order shows in it."""
    shares = changed_shares.copy()
    shares[list(without)] = np.nan
    shares = shares[~np.isnan(shares)]
    return math.fsum(shares) / len(shares) if len(shares) else 0.0


def default_workers(refiner: WindowRefiner | None) -> int:
    """Decoding processes for a refiner: one beside a CPU, up to four beside a GPU.

    Measured on 640×480 JPEGs with ten masks each: a process prepares one in 4 ms, of which 1 ms is for handing it
    over, and takes a quarter of the work off the process that feeds the network. On a CPU the network needs
    seconds for ten masks, so one process is ahead of it at no cost; it is there because a decoder that crashes
    then takes nothing else with it. On a GPU decoding may be what all else waits for; four processes prepare
    about a thousand images a second, more than the masks of which can be encoded.
    """
    device = getattr(getattr(refiner, "device", None), "type", "cpu")
    return 1 if device == "cpu" else max(1, min(4, (os.cpu_count() or 1) - 1))


def _to_refine(
    items: Iterable[tuple[int, ImageAhead | RecordFault]], tally: Tally
) -> Iterator[ImageToRefine]:
    """Tells the tally of what needs no refiner and lets through the images that do."""
    for position, item in items:
        if isinstance(item, RecordFault):
            tally.record_fault(position, item)
            continue
        tally.image(position, item)
        if item.prepared is not None and item.prepared.chosen:
            yield ImageToRefine(position, item.record, item.prepared)


def _refine(images: Iterator[ImageToRefine], refiner: FittingRefiner, tally: Tally) -> None:
    """Refines batch by batch, while the masks of the batch before are encoded."""
    waiting: deque[list[_Encoding]] = deque()  # by batch
    with ThreadPoolExecutor(_ENCODERS, "transfiner-encode") as encoders:
        try:
            for batch in batches(images, lambda: refiner.batch_size, tally.refused):
                refined = refiner.refine(batch)
                waiting.append(
                    [
                        (place, each if isinstance(each, InputError) else encoders.submit(encode, mask, each))
                        for place, mask, each in zip(batch.places, batch.masks, refined, strict=True)
                    ]
                )
                del batch, refined
                while len(waiting) > 1:
                    _collect(waiting.popleft(), tally)
        finally:  # after Ctrl-C too: what is refined is worth keeping
            while waiting:
                _collect(waiting.popleft(), tally)


def _collect(batch: list[_Encoding], tally: Tally) -> None:
    for place, result in batch:
        if isinstance(result, InputError):
            tally.refused(place, result)
        else:
            tally.mask(place[1], *result.result())
    tally.batch_done()


def _say(text: str) -> None:
    tqdm.write(f"transfiner-refine: {text}", file=sys.stderr)
