"""``transfiner-refine refine``: masks in, sharper masks out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from transfiner_refine.cli.options import (
    ANY,
    FOLDER,
    FORMAT_NAMES,
    Command,
    choice,
    count,
    flag,
    option,
    report_errors,
    shared,
)
from transfiner_refine.cli.streams import standard_streams

if TYPE_CHECKING:
    from transfiner_refine.pipeline import Summary

__all__ = ["command"]

_READING = (
    "image_info",
    "format",
    "png_kind",
    "class_names",
    "fit_masks",
    "orientation",
    "refine_crowds",
    "background",
    "max_image_pixels",
)


@click.command(
    "refine",
    cls=Command,
    places=("images", "masks"),
    needed=("images", "masks", "output"),
    epilog="Exit codes: 0 all done, 1 some images or records could not be used (each is named, the "
    "others are written) or nothing could be written, 2 wrong usage, 130 interrupted.",
)
@shared("images")
@option(
    "--masks",
    type=ANY,
    help="Coarse masks: COCO, LVIS, Cityscapes, Pascal VOC, DAVIS, YOLO or labelme files, one mask image, or PNGs "
    "named IMAGE_STEM.png, IMAGE_STEM_*.png or IMAGE_STEM/*.png. The content tells the format.",
)
@shared(
    "output",
    help="Where the refined masks go: same order, same everything but the masks. A name in .json, .jsonl or .png says "
    "its kind, otherwise it is that of the masks; - is standard output.",
)
@flag("--soft", "Write probabilities in 8 bits, one PNG a mask.")
@flag("--soft16", "The same in 16 bits.")
@flag("--cutout", "Write the objects cut out: RGBA, a soft edge, no colour of the background in it.")
@flag("--overlay", "Write labelled outlines on the image, before beside after.")
@shared("from", help=f"Format of the masks, if their content should not decide: {', '.join(FORMAT_NAMES)}.")
@shared("to", help="Format of the output, if it is to be another.  [default: that of the masks]")
@shared("image_info")
@shared("class_names")
@shared("png_kind")
@shared("fit_masks")
@shared("orientation")
@shared("refine_crowds")
@shared("background")
@shared("weights")
@shared("device")
@choice(
    "--engine",
    ["auto", "torch", "onnx"],
    "What runs the network: onnx is onnxruntime, on a CPU; auto takes it there.",
)
@choice(
    "--precision",
    ["auto", "fp32", "bf16", "fp16", "int8"],
    "Arithmetic of the network. auto: int8 on a CPU with instructions for it, half precision on a GPU.",
)
@count(
    "--batch-size",
    1,
    "Instances refined at a time; changes speed and memory, never a mask.  [default: what suits the device]",
)
@option(
    "--tiles/--no-tiles",
    default=True,
    help="Look at large objects once more, part by part: a little sharper, and they take about two and a half "
    "times as long.",
)
@count("--min-area", 0, "Leave masks of fewer pixels as they are.", default=0)
@option("--score-threshold", type=click.FloatRange(0, 1), help="Leave masks with a lower score as they are.")
@option(
    "--category",
    "categories",
    multiple=True,
    help="Refine only this category, an id or a name. May be given several times; masks of other "
    "categories are written as they are.",
)
@shared("max_image_pixels")
@flag("--keep-boxes", "Leave bbox and area as they are; otherwise they follow the new mask.")
@shared("polygon_tolerance")
@choice("--polygons", ["keep", "rle"], "What COCO polygons become: polygons again, or RLE.")
@option(
    "--report",
    type=FOLDER,
    help="Also make a page that shows the masks before and after, in this folder (see the command report).",
)
@count(
    "--workers",
    0,
    "Processes that decode images ahead; 0 decodes in threads of this one. Changes speed and "
    "memory, never a mask.  [default: what suits the device]",
)
@option(
    "--gpus",
    metavar="all|N",
    help="Refine in N processes, each on a GPU of its own, or on a CPU each on a share of the cores.  "
    "[default: one, in this process]",
)
@choice(
    "--executor",
    ["local", "ray"],
    "Where to refine: on this machine, or with actors on a Ray cluster, one for each of --gpus.",
)
@option(
    "--address",
    default="auto",
    help="Of the Ray cluster: auto for the one that runs here, local to start one.",
)
@shared("overwrite", help="Replace the output if it exists; start anew.")
@flag(
    "--resume",
    "Continue an interrupted run of the same command. The output is byte for byte that of an "
    "uninterrupted one.",
)
@option(
    "--shard",
    metavar="I/N",
    help="Refine the I-th of N parts of the images only, for job arrays; the command merge makes one output "
    "of the outputs of all parts. Which images are in a part follows from their names.",
)
@flag("--strict", "Stop at the first image or record that cannot be used, instead of naming it and going on.")
@flag("--dry-run", "Read and check everything, say what would be done, write nothing.")
@shared("json")
@shared("quiet")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Sharpen the outlines of instance masks.

    Takes the masks that a detector or a labelling tool made, with the images they
    were made on, and writes the same masks with better outlines. Number, order, ids,
    classes and scores stay; crowd regions and empty masks pass through. IMAGES is a
    folder or one image, MASKS a file or a folder; - is standard input.

    \b
    transfiner-refine refine photo.jpg mask.png -o refined.png
    transfiner-refine refine photo.jpg mask.png -o cutout.png --cutout
    transfiner-refine refine photos detections.json -o refined.json
    transfiner-refine refine --images photos --masks masks --output refined

    Finished masks are kept beside the output until it is complete, in a hidden file
    .NAME.journal. After a crash, a full disk or Ctrl-C nothing half-written has the
    output's name; the same command with --resume continues.
    """
    kinds = [name for name in ("soft", "soft16", "cutout", "overlay") if options.pop(name)]
    if len(kinds) > 1:
        raise click.UsageError(f"--{kinds[0]} and --{kinds[1]} ask for two kinds of output")
    with standard_streams({**options, "picture": kinds[0] if kinds else None}) as given:
        code = _run(given, to_stdout=given["output"] is not options["output"])
    ctx.exit(code)


def _run(options: dict[str, Any], *, to_stdout: bool) -> int:
    """Refines, and gives the exit code."""
    from transfiner_refine.cli import end_program
    from transfiner_refine.pipeline import refine_files  # here, so that --help does not wait for numpy
    from transfiner_refine.pipeline.journal_file import journal_path

    quiet, as_json, report, picture = (
        options.pop(name) for name in ("quiet", "as_json", "report", "picture")
    )
    report = None if options["dry_run"] else report
    _check(options, report, picture)

    def say(summary: Summary, lines: Sequence[str] = ()) -> None:
        summary.output = "standard output" if to_stdout else summary.output
        text = json.dumps(summary.as_json()) if as_json else "\n".join([*summary.lines(), *lines])
        if as_json or not quiet:
            click.echo(text, err=to_stdout)

    reading = {name: options[name] for name in _READING}
    if picture is not None:
        summary = _pictures(options, picture, reading, progress=not (quiet or as_json))
        report_errors(summary.errors)
        say(summary)
        return summary.exit_code
    not_shown: list[Exception] = []

    def finish(summary: Summary, was_written: bool) -> None:
        """The report is a part of the run: as long as it is not there, --resume makes it."""
        report_errors(summary.errors)
        lines = list[str]()
        if report is not None and not (summary.was_complete and report.exists()):
            from transfiner_refine.errors import InputError
            from transfiner_refine.report import build_report

            try:
                built = build_report(
                    options["images"],
                    options["masks"],
                    options["output"],
                    report,
                    **reading,
                    overwrite=options["overwrite"] or was_written,
                    progress=not (quiet or as_json),
                )
            except InputError as error:
                if summary.refined:
                    raise
                report_errors([error])  # nothing was refined, so that there is nothing to show
            else:
                said = {str(error) for error in summary.errors}
                not_shown.extend(fault for fault in built.faults if str(fault) not in said)
                lines = built.lines()
            report_errors(not_shown)
        say(summary, lines)
        if not options["dry_run"] and not to_stdout:
            end_program(exit_code(summary), journal_path(options["output"]))

    def exit_code(summary: Summary) -> int:
        return max(summary.exit_code, int(bool(not_shown)))

    return exit_code(refine_files(**options, progress=not (quiet or as_json), then=finish))


def _check(options: dict[str, Any], report: Path | None, picture: str | None) -> None:
    """What contradicts itself is said before the work: nobody wants to hear of it after an hour."""
    from transfiner_refine.formats.registry import format_for, recognise
    from transfiner_refine.output import check_output_folder
    from transfiner_refine.pipeline.journal_file import journal_path
    from transfiner_refine.remote import url_of

    for name in ("report", "to", "shard", "resume", "keep_boxes", "dry_run"):
        given = report if name == "report" else options[name]
        if picture is not None and given:
            raise click.UsageError(f"--{picture} does not go with --{name.replace('_', '-')}")
    if options["shard"] is not None and (report is not None or options["to"] is not None):
        raise click.UsageError("--shard goes with neither --report nor --to; give --to to merge")
    if (report is not None or picture is not None) and any(
        url_of(options[name] or "") for name in ("images", "masks", "output")
    ):
        what = "--report" if picture is None else f"--{picture}"
        raise click.UsageError(f"{what} reads files on this machine; leave it out where there are URLs")
    if report is None:
        return
    read_as = None if options["to"] else recognise(options["masks"], options["format"])
    if read_as is None or format_for(options["output"], None, read_as) is not read_as:
        reason = "--report compares masks of one format"
        raise click.UsageError(
            f"{reason}; leave --to out and name the output accordingly, or make it afterwards"
        )
    inputs = ("images", "masks", "output", "image_info", "class_names")
    left = journal_path(options["output"]), options["output"]
    may_be_there = options["resume"] and any(path.exists() for path in left)
    check_output_folder(
        report,
        [options[name] for name in inputs if options[name] is not None],
        overwrite=options["overwrite"] or may_be_there,
    )


def _pictures(options: dict[str, Any], kind: Any, reading: dict[str, Any], *, progress: bool) -> Summary:
    from transfiner_refine.pictures import refine_pictures
    from transfiner_refine.refiner import load_refiner

    loading = ("weights", "device", "engine", "precision", "batch_size", "tiles")
    passed = ("images", "masks", "output", "min_area", "score_threshold", "categories", "overwrite", "strict")
    refiner = load_refiner(**{name: options[name] for name in loading})
    return refine_pictures(
        **{name: options[name] for name in passed}, **reading, kind=kind, refiner=refiner, progress=progress
    )
