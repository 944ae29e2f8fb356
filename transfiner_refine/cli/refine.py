"""``transfiner-refine refine``: masks in, sharper masks out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from transfiner_refine.cli.format_names import FORMAT_NAMES
from transfiner_refine.cli.reading_options import (
    from_option,
    max_image_pixels_option,
    png_kind_option,
    to_option,
)

__all__ = ["command"]

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
_ANY = click.Path(path_type=Path)


@click.command(
    "refine",
    short_help="Sharpen the masks of a results file or a folder.",
    epilog="Exit codes: 0 all done, 1 some images or records could not be used (each is named, the "
    "others are written) or nothing could be written, 2 wrong usage, 130 interrupted.",
)
@click.option("--images", type=_FOLDER, required=True, help="Folder of the photos.")
@click.option(
    "--masks",
    type=_ANY,
    required=True,
    help="Coarse masks: COCO, LVIS, Cityscapes, Pascal VOC, DAVIS, YOLO or labelme files, or PNGs named "
    "IMAGE_STEM.png, IMAGE_STEM_*.png or IMAGE_STEM/*.png. The content tells the format.",
)
@click.option(
    "--output",
    type=_ANY,
    required=True,
    help="Where the refined masks go. Same format, same order, same everything but the masks.",
)
@from_option(f"Format of the masks, if their content should not decide: {', '.join(FORMAT_NAMES)}.")
@to_option("Format of the output, if it is to be another.")
@click.option(
    "--image-info",
    type=_FILE,
    help="COCO annotation file that says which image id is which photo. Only for COCO results, and "
    "only if the photos are not named after their ids.",
)
@click.option(
    "--class-names",
    type=_FILE,
    help="Text file with one class name a line, for formats that number their classes.",
)
@png_kind_option(
    "What the PNGs are: one mask each (0/255, 0/1 or soft), or maps of ids with 0 as background. "
    "auto looks into the pixels of each IMAGE_STEM.png; the other names mean one mask."
)
@click.option(
    "--weights", default="lite", show_default=True, help="Name of shipped weights, or path of a checkpoint."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "torch", "onnx"]),
    default="auto",
    show_default=True,
    help="What runs the network: onnx is onnxruntime, on a CPU; auto takes it there.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
    default="auto",
    show_default=True,
    help="Arithmetic of the network. auto: int8 on a CPU with instructions for it, half precision on a GPU.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Instances refined at a time; changes speed and memory, never a mask.  [default: what suits "
    "the device]",
)
@click.option(
    "--close-ups/--no-close-ups",
    default=True,
    show_default=True,
    help="Look at large objects once more, part by part: a little sharper, and they take about two and a half "
    "times as long.",
)
@click.option(
    "--min-area",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Leave masks of fewer pixels as they are.",
)
@click.option("--score-threshold", type=float, help="Leave masks with a lower score as they are.")
@click.option(
    "--category",
    "categories",
    multiple=True,
    help="Refine only this category, an id or a name. May be given several times; masks of other "
    "categories are written as they are.",
)
@max_image_pixels_option("Do not open photos or mask images of more pixels; their masks stay as they are.")
@click.option(
    "--keep-boxes", is_flag=True, help="Leave bbox and area as they are; otherwise they follow the new mask."
)
@click.option(
    "--report",
    type=_FOLDER,
    help="Also make a page that shows the masks before and after, in this folder (see the command report).",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that decode photos ahead; 0 decodes in threads of this one. Changes speed and "
    "memory, never a mask.  [default: what suits the device]",
)
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists; start anew.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on where an interrupted run of the same command has stopped. The output is byte for byte "
    "that of an uninterrupted one.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Stop at the first image or record that cannot be used, instead of naming it and going on.",
)
@click.option(
    "--dry-run", is_flag=True, help="Read and check everything, say what would be done, write nothing."
)
@click.option("--quiet", is_flag=True, help="No progress and no summary; errors are shown all the same.")
@click.pass_context
def command(ctx: click.Context, /, quiet: bool, report: Path | None, **options: Any) -> None:
    """Sharpen the outlines of instance masks.

    Takes the masks that a detector or a labelling tool made, with the photos they
    were made on, and writes the same masks with better outlines. Number, order, ids,
    classes and scores stay; crowd regions and empty masks pass through.

    \b
    transfiner-refine refine --images photos --masks detections.json \\
        --output refined.json
    transfiner-refine refine --images photos --masks masks --output refined

    What is done is kept beside the output until that is complete, in a hidden file
    .NAME.journal. After a crash, a full disk or Ctrl-C nothing half-written has the
    output's name; the same command with --resume goes on.
    """
    from transfiner_refine.pipeline import refine_files  # here, so that --help does not wait for numpy

    report = None if options["dry_run"] else report
    if report is not None and options["to"] is not None:
        raise click.UsageError("--report compares masks of one format; leave --to out, or make it afterwards")
    if report is not None:
        from transfiner_refine.output import check_output_folder

        # before the work: nobody wants to hear of it after an hour
        check_output_folder(report, [options["images"], options["masks"]], overwrite=options["overwrite"])
    summary = refine_files(**options, progress=not quiet)
    for error in summary.errors:
        click.echo(f"transfiner-refine: {error}", err=True)
    if not quiet:
        click.echo("\n".join(summary.lines()))
    if report is not None:
        from transfiner_refine.report import build_report

        built = build_report(
            options["images"],
            options["masks"],
            options["output"],
            report,
            image_info=options["image_info"],
            png_kind=options["png_kind"],
            overwrite=options["overwrite"],
            progress=not quiet,
        )
        if not quiet:
            click.echo("\n".join(built.lines()))
    ctx.exit(summary.exit_code)
