"""From files to files, so that nothing done is lost: journal, refine, write."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transfiner_refine.errors import InputError, MaskRefineError
from transfiner_refine.formats.convert import check_destination
from transfiner_refine.formats.records import PngKind, Written
from transfiner_refine.formats.registry import format_named, open_source, recognise
from transfiner_refine.images import MAX_IMAGE_PIXELS
from transfiner_refine.output import atomic_output, remove_drafts
from transfiner_refine.pipeline.batches import AnyRefiner
from transfiner_refine.pipeline.fingerprint import content_digest, input_entries, refiner_entries
from transfiner_refine.pipeline.journal import Journal
from transfiner_refine.pipeline.journal_file import journal_path
from transfiner_refine.pipeline.prepare import Selection, category_ids, system_fault
from transfiner_refine.pipeline.run import Outcome, mean_share, refine_source
from transfiner_refine.pipeline.summary import Summary
from transfiner_refine.renamed import renamed

_COVERED = "refined mask lies entirely under others in a format of one id a pixel, coarse mask kept"
_REMEDIES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "free memory",
    errno.ENOSPC: "make space on the disk",
    errno.EDQUOT: "make space on the disk",
    errno.EIO: "check the disk",
}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the text says what is kept and how to go on."""


@contextmanager
def _system_faults() -> Iterator[None]:
    """What the system refuses is not said to be the input's fault."""
    try:
        yield
    except (InputError, OSError) as error:
        fault = system_fault(error) or (error if isinstance(error, OSError) else None)
        if fault is None:
            raise
        raise MaskRefineError(
            f"the system refused ({fault.strerror or fault}), which is no fault of the input",
            remedy=_REMEDIES.get(fault.errno or 0),
        ) from error


@_system_faults()
@renamed(close_ups="tiles")
def refine_files(
    images: str | Path,
    masks: str | Path,
    output: str | Path,
    *,
    format: str = "auto",  # noqa: A002  the word for it
    to: str | None = None,
    image_info: str | Path | None = None,
    png_kind: PngKind | Literal["auto"] = "auto",
    class_names: str | Path | None = None,
    weights: str | Path = "lite",
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    tiles: bool = True,
    refiner: AnyRefiner | None = None,
    min_area: int = 0,
    score_threshold: float | None = None,
    categories: Sequence[int | str] = (),
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    keep_boxes: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    strict: bool = False,
    dry_run: bool = False,
    progress: bool = False,
    then: Callable[[Summary, bool], object] | None = None,
) -> Summary:
    """Refines the masks of files and writes files of the same kind.

    What is done is kept in a journal beside the output (``.NAME.journal``) until the output is there. A run that
    is interrupted, even by ``kill -9``, can be resumed by calling this again with ``resume``; the output is then
    byte for byte the same as without the interruption.

    Args:
        images: folder of the images.
        masks: a file or folder of masks in any format of ``transfiner_refine.formats.registry.FORMATS``.
        output: the file or folder to write.
        format: the format of ``masks``, "auto" to tell it by the content.
        to: the format of ``output``, None for that of ``masks``.
        image_info: for COCO results: an annotation file that says which image id is which image.
        png_kind: for PNG folders: "binary" or "label-map" where the pixels should not decide.
        class_names: a text file with one class name a line, for formats that number their classes.
        weights: name of shipped weights, or a path.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        engine: "auto", "torch" or "onnx".
        precision: "auto", "fp32", "bf16", "fp16" or "int8".
        batch_size: instances a call of the network, None for what suits the device.
        tiles: look at large objects once more, part by part.
        refiner: used in place of loading ``weights``; the arguments from ``weights`` to ``tiles`` are
            not looked at then.
        min_area: masks of fewer pixels pass through.
        score_threshold: instances with a lower score pass through.
        categories: ids or names to refine; all others pass through. Empty for all.
        max_image_pixels: images and mask images with more pixels are not decoded; their masks pass through as
            failed.
        keep_boxes: leave ``bbox`` and ``area`` as they are.
        workers: processes that decode images, 0 for threads of this process; None as
            ``transfiner_refine.pipeline.run.default_workers`` says.
        overwrite: an output that exists may be replaced, and a journal that is not resumed thrown away.
        resume: go on where an interrupted run with the same inputs and options has stopped; a new run if there
            was none.
        strict: stop at the first record or image that cannot be used.
        dry_run: read and check everything, refine and write nothing.
        progress: a bar on stderr, if that is a terminal.
        then: what belongs to the run when the output is there: called with the summary, and whether an interrupted
            run had come so far before. Until it has returned, the run can be resumed.

    Returns:
        The summary; its ``exit_code`` is 1 if some records or images failed, though all others are written.

    Raises:
        InputError: the input cannot be used at all; with ``strict``, some of it cannot. Nothing is written.
        OutputError: the output exists, is, holds or lies inside an input, is being written by another run or
            cannot be written; or there is a journal, and it is of another run or ``resume`` was not asked for.
        CheckpointError, DeviceError: from loading the weights.
        Interrupted: Ctrl-C, when there is something to resume.
    """
    images, masks, output = Path(images), Path(masks), Path(output)
    read_as = recognise(masks, format)
    source = open_source(
        masks,
        images,
        format=read_as.name,
        image_info=image_info,
        png_kind=png_kind,
        class_names=class_names,
        max_image_pixels=max_image_pixels,
    )
    target = read_as if to is None else format_named(to)
    files = {"--masks": masks, "--image-info": image_info, "--class-names": class_names}
    if read_as.beside is not None:
        files["the PNGs of --masks"] = read_as.beside(masks)
    inputs = [images, *(Path(path) for path in files.values() if path is not None)]
    inputs += [Path(weights)] if Path(weights).is_file() else []
    beside = None if target.beside is None else target.beside(output)
    check = partial(check_destination, target, output, inputs, source=source)
    check(overwrite=overwrite or (resume and journal_path(output).exists()))
    selection = Selection(min_area, score_threshold, category_ids(categories, source.categories, masks))
    run = partial(
        refine_source, source, selection=selection, max_image_pixels=max_image_pixels, workers=workers,
        strict=strict, progress=progress,
    )  # fmt: skip
    if dry_run:
        summary = run(refiner=None).summary
        if then is not None:
            then(summary, False)
        return summary
    with _resumable(output, source.num_instances) as journal:
        journal.refuse_unfinished(resume=resume, overwrite=overwrite)
        weights_file = None
        if refiner is None:
            from transfiner_refine.model.weights import find_weights
            from transfiner_refine.refine.engine import unused_card
            from transfiner_refine.refiner import load_refiner  # here, so that a dry run does not load it

            weights_file = find_weights(weights)
            refiner = load_refiner(
                weights_file,
                device=device,
                engine=engine,
                precision=precision,
                batch_size=batch_size,
                tiles=tiles,
            )
            left_to_us = (device, engine, precision) == ("auto",) * 3 and refiner.device == "cpu"
            if left_to_us and (reason := unused_card()) is not None:
                print(f"transfiner-refine: {reason}", file=sys.stderr)
        reading = {
            "--from": read_as.name,
            "--png-kind": png_kind,
            "--max-image-pixels": str(max_image_pixels),
        }
        fingerprint = input_entries(images, files, reading, selection)
        journal.begin(fingerprint | refiner_entries(refiner, weights_file), resume=resume)
        was_written = journal.has_written(_stamps(output, beside))
        if not (overwrite or was_written):
            check(overwrite=False)  # what is there is not of the run that is resumed
        for path in (output, *([] if beside is None else [beside])):
            remove_drafts(path)
        outcome = run(refiner=refiner, journal=journal)
        with atomic_output(output, beside, overwrite=overwrite or was_written) as draft:
            if to in (None, read_as.name):
                written = source.write(draft, outcome.masks, keep_boxes=keep_boxes, overwrite=True)
            else:
                written = target.write(draft, source, outcome.masks)
            journal.note_output(_stamps(draft, None if target.beside is None else target.beside(draft)))
        _account(outcome, written)
        outcome.summary.seconds = journal.seconds
        if then is not None:
            then(outcome.summary, was_written)
    return outcome.summary


@contextmanager
def _resumable(output: Path, num_instances: int) -> Iterator[Journal]:
    """The journal of a run. It stays if the block fails and there is something to go on with.

    Raises:
        OutputError: from opening the journal.
        MaskRefineError: errors of the block, with a word on how to go on.
        Interrupted: for Ctrl-C in the block.
    """
    journal, keep = Journal(num_instances, output), True
    try:
        with _system_faults():
            yield journal
        keep = False
    except KeyboardInterrupt:
        raise Interrupted("; ".join(filter(None, ("interrupted", journal.way_on())))) from None
    except MaskRefineError as error:
        if (way_on := journal.way_on()) is None:
            raise
        remedy = "; ".join(filter(None, (error.remedy, way_on)))
        raise type(error)(error.reason, file=error.file, record=error.record, remedy=remedy) from error
    finally:
        journal.close(keep=keep)


def _stamps(*outputs: Path | None) -> dict[str, Any]:
    """What tells outputs from others of their names, and stays when they are renamed."""
    stamps = {}
    for path in outputs:
        if path is None or not path.exists():
            continue
        state = path.stat()
        is_folder = path.is_dir()
        stamps[path.name] = (
            content_digest(path) if is_folder else [state.st_ino, state.st_size, state.st_mtime_ns]
        )
    return stamps


def _account(outcome: Outcome, written: Written) -> None:
    """Takes what writing had to decide into the summary."""
    summary = outcome.summary
    summary.overlap_pixels = written.overlap_pixels
    known = {str(error) for error in summary.errors}  # most of them have been met in refining already
    summary.errors += [fault.error for fault in written.faults if str(fault.error) not in known]
    summary.not_written = sum(fault.instances for fault in written.faults)
    if written.covered:
        summary.refined -= len(written.covered)
        summary.passed_through[_COVERED] += len(written.covered)
        summary.mean_changed_share = mean_share(outcome.changed_shares, written.covered)
