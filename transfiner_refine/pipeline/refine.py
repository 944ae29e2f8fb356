"""From files to files, so that nothing done is lost: journal, refine, write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transfiner_refine.formats.records import POLYGON_TOLERANCE, PngKind, Polygons
from transfiner_refine.images import MAX_IMAGE_PIXELS, Orientation
from transfiner_refine.pipeline.batches import AnyRefiner
from transfiner_refine.pipeline.fingerprint import refiner_entries
from transfiner_refine.pipeline.groups import Executor, ProcessGroups, Refining, given, refine_apart
from transfiner_refine.pipeline.job import Job, resumable, stamps_of, system_faults
from transfiner_refine.pipeline.journal_file import journal_path
from transfiner_refine.pipeline.prepare import Selection, category_ids
from transfiner_refine.pipeline.run import refine_source
from transfiner_refine.pipeline.shards import Shard
from transfiner_refine.pipeline.staging import at_urls
from transfiner_refine.pipeline.summary import Summary
from transfiner_refine.remote import place
from transfiner_refine.renamed import renamed


@system_faults()
@renamed(close_ups="tiles")
@at_urls
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
    fit_masks: bool = False,
    orientation: Orientation = "auto",
    refine_crowds: bool = False,
    background: int | Literal["none"] = 0,
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
    polygon_tolerance: float = POLYGON_TOLERANCE,
    polygons: Polygons = "keep",
    workers: int | None = None,
    gpus: int | str | None = None,
    executor: Literal["local", "ray"] = "local",
    address: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    strict: bool = False,
    shard: str | None = None,
    dry_run: bool = False,
    progress: bool | Callable[[int, int], object] = False,
    then: Callable[[Summary, bool], object] | None = None,
) -> Summary:
    """Refines the masks of files and writes files of the same kind.

    What is done is kept in a journal beside the output (``.NAME.journal``) until the output is there. A run that
    is interrupted, even by ``kill -9``, can be resumed by calling this again with ``resume``; the output is then
    byte for byte the same as without the interruption.

    Args:
        images: folder of the images, or one image.
        masks: a file or folder of masks in any format of ``transfiner_refine.formats.registry.FORMATS``.
        output: the file or folder to write.
        format: the format of ``masks``, "auto" to tell it by the content.
        to: the format of ``output``; None for what its name says (``.json``, ``.jsonl``, ``.png``), else for that of
            ``masks``.
        image_info: for COCO results: an annotation file that says which image id is which image.
        png_kind: for PNG folders: "binary" or "label-map" where the pixels should not decide.
        class_names: a text file with one class name a line, for formats that number their classes.
        fit_masks: stretch masks of another size than their image over it.
        orientation: "upright" or "stored": how images lie under their masks, if the masks' size should not decide.
        refine_crowds: treat COCO's crowd regions as instances.
        background: the value of label maps that is no instance, "none" where every value is one.
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
        polygon_tolerance: pixels that lines of refined polygons may be off; 0 writes masks to the pixel.
        polygons: "keep" writes refined polygons of COCO records as polygons, "rle" as RLE.
        workers: processes that decode images, 0 for threads of this process; None as
            ``transfiner_refine.pipeline.run.default_workers`` says.
        gpus: "all" or a number: refine in as many processes, each on a CUDA device of its own; where there is none,
            each on a share of the cores, "all" being one for eight. ``workers`` is then that of each process, and
            ``refiner`` is pickled.
        executor: "ray" for actors on a Ray cluster in place of processes on this machine; ``gpus`` is how many, all by
            default. Images and weights must lie at the same paths for all of them, or at URLs.
        address: of the cluster: "auto" for the one that runs here, "local" to start one on this machine.
        overwrite: an output that exists may be replaced, and a journal that is not resumed thrown away.
        resume: go on where an interrupted run with the same inputs and options has stopped; a new run if there
            was none.
        strict: stop at the first record or image that cannot be used.
        shard: "I/N": refine the I-th of N parts only. Which images are in it follows from their names. The output is
            then a file for ``merge_shards``, whatever the format of the masks.
        dry_run: read and check everything, refine and write nothing.
        progress: a bar on stderr, if that is a terminal; or a function of instances done and of all.
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
    images, masks, output = place(images), Path(masks), Path(output)
    reading = {
        "format": format, "image_info": image_info, "png_kind": png_kind, "class_names": class_names,
        "fit_masks": fit_masks, "orientation": orientation, "refine_crowds": refine_crowds,
        "background": background, "max_image_pixels": max_image_pixels,
        "polygon_tolerance": polygon_tolerance, "polygons": polygons,
    }  # fmt: skip
    job = Job(images, masks, output, reading, to, keep_boxes, None if shard is None else Shard.parse(shard))
    job.inputs += [Path(weights)] if Path(weights).is_file() else []
    job.check(overwrite=overwrite or (resume and (journal_path(output).exists() or job.is_marked())))
    selection = Selection(min_area, score_threshold, category_ids(categories, job.source.categories, masks))
    how: dict[str, Any] = {"strict": strict, "progress": progress, "shard": job.shard}
    here = partial(
        refine_source,
        job.source,
        selection=selection,
        max_image_pixels=max_image_pixels,
        workers=workers,
        **how,
    )
    if dry_run:
        summary = here(refiner=None).summary
        if then is not None:
            then(summary, False)
        return summary
    with resumable(output, job.source.num_instances) as journal, ExitStack() as processes:
        journal.refuse_unfinished(resume=resume, overwrite=overwrite)
        load: Callable[[], AnyRefiner]
        if refiner is not None:
            load, weights_file = partial(given, refiner), None
        else:
            from transfiner_refine.model.weights import find_weights
            from transfiner_refine.refiner import load_refiner  # here, so that a dry run does not load it

            weights_file = find_weights(weights)
            load = partial(
                load_refiner, weights, device=device, engine=engine, precision=precision,
                batch_size=batch_size, tiles=tiles,
            )  # fmt: skip
        if gpus is None and executor == "local":
            refiner = load()
            run = partial(here, refiner=refiner)
            entries: Mapping[str, str] = refiner_entries(refiner, weights_file)
        else:
            name = None if weights_file is None else weights
            task = Refining(load, name, selection, max_image_pixels, workers)
            groups: Executor
            wanted = "all" if gpus is None else gpus
            if executor == "ray":
                from transfiner_refine.pipeline.ray_groups import RayGroups

                groups = processes.enter_context(RayGroups(task, wanted, address))
            else:
                groups = processes.enter_context(ProcessGroups(task, wanted, device))
            entries = groups.facts.fingerprint
            run = partial(refine_apart, job.source, groups, **how)
        if (
            weights_file is not None
            and (device, engine, precision) == ("auto",) * 3
            and entries["--device"] == "cpu"
        ):
            from transfiner_refine.refine.engine import unused_card

            if (reason := unused_card()) is not None:
                print(f"transfiner-refine: {reason}", file=sys.stderr)
        fingerprint = {**job.fingerprint(selection), **entries}
        if resume and not journal.is_unfinished and job.is_marked(fingerprint):
            summary = Summary(job.source.num_images, was_complete=True)
            if then is not None:
                then(summary, True)
            return summary
        journal.begin(fingerprint, resume=resume)
        was_written = journal.has_written(stamps_of(*job.outputs(output)))
        if not (overwrite or was_written):
            job.check(overwrite=False)  # what is there is not of the run that is resumed
        outcome = run(journal=journal)
        if weights_file is not None:
            how_it_ran = [entries.get(f"--{name}") for name in ("engine", "precision", "device")]
            outcome.summary.network = "{}, {} in {} on {}".format(weights, *how_it_ran)
        job.write(outcome, journal, overwrite=overwrite or was_written)
        if outcome.summary.exit_code == 0:
            job.mark_done(fingerprint)
        if then is not None:
            then(outcome.summary, was_written)
    return outcome.summary
