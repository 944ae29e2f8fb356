"""From a source of coarse masks to refined ones: decode ahead, batch, refine, encode behind, write."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from transfiner_refine.formats import PngKind, RecordFault, RleMask, Source, open_source
from transfiner_refine.pipeline.contract import WindowRefiner
from transfiner_refine.pipeline.read_ahead import PreparedImage, read_ahead
from transfiner_refine.pipeline.selection import Selection, category_ids
from transfiner_refine.pipeline.summary import Summary
from transfiner_refine.types import MaskWindow

__all__ = ["Outcome", "refine_files", "refine_source"]

_THREADS = min(4, os.cpu_count() or 1)  # decoding and encoding; more would take the cores from the network
_IMAGES_AHEAD = 2 * _THREADS
_EMPTIED = "refined mask came out empty, coarse mask kept"
_COVERED = "refined mask lies entirely under others in a format of one id a pixel, coarse mask kept"


@dataclass(frozen=True)
class Outcome:
    """What refining gave, before anything is written.

    Attributes:
        masks: refined masks by ``Instance.index``.
        changed_shares: by the same index: changed pixels / pixels of the coarse mask's box.
        summary: the tally.
    """

    masks: dict[int, RleMask]
    changed_shares: dict[int, float]
    summary: Summary


@dataclass(frozen=True)
class _Batch:
    """Instances for one call of the refiner; attributes as its arguments, and the index of each instance."""

    images: list[NDArray[np.uint8]]
    masks: list[MaskWindow]
    image_index: list[int]
    indexes: list[int]


def refine_files(
    images: str | Path,
    masks: str | Path,
    output: str | Path,
    *,
    image_info: str | Path | None = None,
    png_kind: PngKind | Literal["auto"] = "auto",
    weights: str | Path = "lite",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    refiner: WindowRefiner | None = None,
    min_area: int = 0,
    score_threshold: float | None = None,
    categories: Sequence[int | str] = (),
    keep_boxes: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = False,
) -> Summary:
    """Refines the masks of files and writes files of the same kind.

    Args:
        images: folder of the photos.
        masks: COCO results or annotations (JSON), or a folder of mask PNGs.
        output: the file or folder to write, as ``masks`` is one.
        image_info: for COCO results: an annotation file that says which image id is which photo.
        png_kind: for PNG folders: "binary" or "id-map" where the pixels should not decide.
        weights: name of shipped weights, or a path.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto", "fp32", "bf16" or "fp16".
        batch_size: instances a call of the network, None for what suits the device.
        refiner: used in place of loading ``weights``; the arguments from ``weights`` to ``batch_size`` are
            not looked at then.
        min_area: masks of fewer pixels pass through.
        score_threshold: instances with a lower score pass through.
        categories: ids or names to refine; all others pass through. Empty for all.
        keep_boxes: leave ``bbox`` and ``area`` as they are.
        overwrite: an output that exists may be replaced.
        dry_run: read and check everything, refine and write nothing.
        progress: a bar on stderr, if that is a terminal.

    Returns:
        The tally; its ``exit_code`` is 1 if some records or images failed, though all others are written.

    Raises:
        InputError: the input cannot be used at all. Nothing is written.
        OutputError: the output exists, is an input, or cannot be written.
        CheckpointError, DeviceError: from loading the weights.
    """
    source = open_source(masks, images, image_info=image_info, png_kind=png_kind)
    source.check_output(Path(output), overwrite=overwrite)
    selection = Selection(min_area, score_threshold, category_ids(categories, source.categories, Path(masks)))
    if refiner is None and not dry_run:
        from transfiner_refine.refiner import load_refiner  # here, because it imports torch

        refiner = load_refiner(weights, device=device, precision=precision, batch_size=batch_size)
    start = time.monotonic()
    outcome = refine_source(source, None if dry_run else refiner, selection, progress=progress)
    summary = outcome.summary
    if not dry_run:
        written = source.write(Path(output), outcome.masks, keep_boxes=keep_boxes, overwrite=overwrite)
        summary.overlap_pixels = written.overlap_pixels
        for index in written.covered:
            summary.take_back(_COVERED, outcome.changed_shares[index])
    summary.seconds = time.monotonic() - start
    return summary


def refine_source(
    source: Source,
    refiner: WindowRefiner | None,
    selection: Selection | None = None,
    *,
    progress: bool = False,
) -> Outcome:
    """Refines what a source holds; bad records and images are counted and do not stop the others.

    Args:
        source: the masks.
        refiner: None for a dry run, which reads and decodes everything all the same.
        selection: what to refine, None for all but crowds and empty masks.
        progress: a bar on stderr, if that is a terminal.

    Returns:
        Masks and tally, the same for every batch size.
    """
    outcome = Outcome({}, {}, Summary(images=source.num_images, dry_run=refiner is None))
    summary = outcome.summary
    bar = tqdm(
        total=source.num_instances,
        unit=" instances",
        desc="checking" if refiner is None else "refining",
        file=sys.stderr,
        disable=None if progress else True,  # None: only if stderr is no terminal
        dynamic_ncols=True,
    )
    with bar, ThreadPoolExecutor(_THREADS, "transfiner-io") as pool:
        try:
            prepared = read_ahead(source, selection or Selection(), pool, _IMAGES_AHEAD)
            ready = _counted(prepared, summary, bar)
            if refiner is None:
                for image in ready:
                    summary.refined += len(image.indexes)
                    bar.update(len(image.indexes))
                return outcome
            encoding: deque[tuple[int, Future[tuple[RleMask | None, float]]]] = deque()
            for batch in _batches(ready, refiner.batch_size):
                refined = refiner.refine_windows(batch.images, batch.masks, batch.image_index)
                for index, coarse_mask, mask in zip(batch.indexes, batch.masks, refined, strict=True):
                    encoding.append((index, pool.submit(_encode, coarse_mask, mask)))
                while (
                    len(encoding) > refiner.batch_size
                ):  # one batch is encoded while the next one is refined
                    _collect(encoding.popleft(), outcome, bar)
            while encoding:
                _collect(encoding.popleft(), outcome, bar)
        except BaseException:  # Ctrl-C above all: what is queued need not be decoded any more
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return outcome


def _counted(
    items: Iterable[PreparedImage | RecordFault], summary: Summary, bar: tqdm[None]
) -> Iterator[PreparedImage]:
    """Counts what needs no refiner and lets through the images that do."""
    for item in items:
        faults = (item,) if isinstance(item, RecordFault) else item.faults
        for fault in faults:
            summary.add_failure(fault.error, fault.instances)
            summary.images_failed += fault.whole_image
            bar.update(fault.instances)
        if isinstance(item, PreparedImage):
            summary.passed_through.update(item.passed_through)
            summary.images_turned += item.turned
            bar.update(item.passed_through.total())
            if item.indexes:
                yield item


def _batches(images: Iterable[PreparedImage], batch_size: int) -> Iterator[_Batch]:
    """Batches of ``batch_size`` instances, the last one smaller; an image may be in two neighbours."""
    batch = _Batch([], [], [], [])
    for image in images:
        assert image.pixels is not None
        for index, coarse_mask in zip(image.indexes, image.coarse_masks, strict=True):
            if not batch.images or batch.images[-1] is not image.pixels:
                batch.images.append(image.pixels)
            batch.masks.append(coarse_mask)
            batch.image_index.append(len(batch.images) - 1)
            batch.indexes.append(index)
            if len(batch.indexes) == batch_size:
                yield batch
                batch = _Batch([], [], [], [])
    if batch.indexes:
        yield batch


def _encode(coarse_mask: MaskWindow, refined: MaskWindow) -> tuple[RleMask | None, float]:
    """The refined mask as it travels on (None if it is empty), and its share of changed pixels."""
    refined = refined.tight()
    if refined.area == 0:
        return None, 0.0
    return RleMask.from_window(refined), _changed_share(coarse_mask.tight(), refined)


def _changed_share(coarse: MaskWindow, refined: MaskWindow) -> float:
    """Pixels whose label differs / pixels of the coarse mask's box; both windows tight."""
    (coarse_height, coarse_width), (height, width) = coarse.values.shape, refined.values.shape
    x0, y0 = max(coarse.x, refined.x), max(coarse.y, refined.y)
    x1 = max(x0, min(coarse.x + coarse_width, refined.x + width))
    y1 = max(y0, min(coarse.y + coarse_height, refined.y + height))
    before = coarse.values[y0 - coarse.y : y1 - coarse.y, x0 - coarse.x : x1 - coarse.x] >= 0.5
    after = refined.values[y0 - refined.y : y1 - refined.y, x0 - refined.x : x1 - refined.x]
    common = int(np.count_nonzero(before & after))
    box_area = int(coarse_height * coarse_width)
    return (coarse.area + refined.area - 2 * common) / box_area


def _collect(
    item: tuple[int, Future[tuple[RleMask | None, float]]], outcome: Outcome, bar: tqdm[None]
) -> None:
    index, future = item
    mask, changed_share = future.result()
    if mask is None:
        outcome.summary.passed_through[_EMPTIED] += 1
    else:
        outcome.masks[index] = mask
        outcome.changed_shares[index] = changed_share
        outcome.summary.add_refined(changed_share)
    bar.update(1)
