"""From files to files, so that nothing done is lost: journal, refine, write."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from transfiner_refine.formats import PngKind
from transfiner_refine.formats.registry import format_named, open_source, recognise
from transfiner_refine.images import MAX_IMAGE_PIXELS
from transfiner_refine.pipeline.contract import AnyRefiner
from transfiner_refine.pipeline.destination import Destination
from transfiner_refine.pipeline.fingerprint import input_entries, refiner_entries
from transfiner_refine.pipeline.journal import journal_path
from transfiner_refine.pipeline.keeping import kept_run
from transfiner_refine.pipeline.run import refine_source
from transfiner_refine.pipeline.selection import Selection, category_ids
from transfiner_refine.pipeline.summary import Summary

__all__ = ["refine_files"]


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
    close_ups: bool = True,
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
) -> Summary:
    """Refines the masks of files and writes files of the same kind.

    What is done is kept in a journal beside the output (``.NAME.journal``) until the output is there. A run that
    breaks off, even by ``kill -9``, can be gone on with by calling this again with ``resume``; the output is then
    byte for byte the same as without the interruption.

    Args:
        images: folder of the photos.
        masks: a file or folder of masks in any format of ``transfiner_refine.formats.registry.FORMATS``.
        output: the file or folder to write.
        format: the format of ``masks``, "auto" to tell it by the content.
        to: the format of ``output``, None for that of ``masks``.
        image_info: for COCO results: an annotation file that says which image id is which photo.
        png_kind: for PNG folders: "binary" or "id-map" where the pixels should not decide.
        class_names: a text file with one class name a line, for formats that number their classes.
        weights: name of shipped weights, or a path.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        engine: "auto", "torch" or "onnx".
        precision: "auto", "fp32", "bf16", "fp16" or "int8".
        batch_size: instances a call of the network, None for what suits the device.
        close_ups: look at large objects once more, part by part.
        refiner: used in place of loading ``weights``; the arguments from ``weights`` to ``close_ups`` are
            not looked at then.
        min_area: masks of fewer pixels pass through.
        score_threshold: instances with a lower score pass through.
        categories: ids or names to refine; all others pass through. Empty for all.
        max_image_pixels: photos and mask images with more pixels are not decoded; their masks pass through as
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

    Returns:
        The tally; its ``exit_code`` is 1 if some records or images failed, though all others are written.

    Raises:
        InputError: the input cannot be used at all; with ``strict``, some of it cannot. Nothing is written.
        OutputError: the output exists, is an input, is being written by another run or cannot be written; or
            there is a journal, and it is of another run or ``resume`` was not asked for.
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
    other_format = None if to in (None, read_as.name) else format_named(to)
    files = {"--masks": masks, "--image-info": image_info, "--class-names": class_names}
    if read_as.beside is not None:
        files["the PNGs of --masks"] = read_as.beside(masks)
    inputs = [images, *(Path(path) for path in files.values() if path is not None)]
    destination = Destination(source, output, other_format, inputs, keep_boxes)
    destination.check(overwrite=overwrite or (resume and journal_path(output).exists()))
    selection = Selection(min_area, score_threshold, category_ids(categories, source.categories, masks))
    run = partial(
        refine_source, source, selection=selection, max_image_pixels=max_image_pixels, workers=workers,
        strict=strict, progress=progress,
    )  # fmt: skip
    if dry_run:
        return run(refiner=None).summary
    with kept_run(output, source.num_instances) as journal:
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
                close_ups=close_ups,
            )
            left_to_us = (device, engine, precision) == ("auto",) * 3 and refiner.device == "cpu"
            if left_to_us and (reason := unused_card()) is not None:
                print(f"transfiner-refine: {reason}", file=sys.stderr)
        reading = {
            "--from": read_as.name,
            "--png-kind": png_kind,
            "--max-image-pixels": str(max_image_pixels),
        }
        fingerprint = input_entries(images, files, reading, selection, output)
        journal.begin(fingerprint | refiner_entries(refiner, weights_file), resume=resume)
        ledger = journal.ledger
        if not overwrite and not ledger.writing:
            destination.check(overwrite=False)  # what is there is not of the run that is resumed
        destination.clear()
        outcome = run(refiner=refiner, ledger=ledger)
        ledger.note_writing()
        written = destination.write(outcome.masks)
        destination.account(written, outcome)
        outcome.summary.seconds = ledger.seconds
        journal.is_done = True
    return outcome.summary
