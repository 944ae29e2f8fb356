"""``transfiner-refine evaluate``: what refining gained, in numbers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from transfiner_refine.cli.options import FILE, Command, count, flag, option, shared

__all__ = ["command"]


@click.command(
    "evaluate",
    cls=Command,
    epilog="Exit codes: 0 all done, 1 a file or a record could not be used (it is named), 2 wrong usage.",
)
@option("--annotations", type=FILE, required=True, help="The truth: a COCO or LVIS annotation file.")
@option("--results", type=FILE, required=True, help="The refined masks: COCO results.")
@option("--before", type=FILE, help="The masks they were refined from, in the same order.")
@shared("match")
@option(
    "--boundary-ratio",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.02,
    help="Boundary band as a share of the image's diagonal; 0.005 for Cityscapes.",
)
@count("--min-area", 0, "Matched instances count from this true area on, in pixels.", default=1024)
@option(
    "--min-coarse-iou",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="Matched instances count from this IoU before refining on.",
)
@flag("--per-class", "Add AP of each class.")
@flag(
    "--error-analysis",
    "Add where the network looks: wrong pixels inside the quadtree, its area, and the oracle. Refines "
    "the masks of --before again; needs --images.",
)
@shared("images", help="Folder of the images, for --error-analysis.")
@shared("weights", help="Name or path of the weights for --error-analysis.")
@shared("device", help="Device for --error-analysis.")
@option("--json", "json_file", type=FILE, help="Write the numbers to this file as JSON.")
@option("--markdown", "markdown_file", type=FILE, help="Write the tables to this file as Markdown.")
@shared("overwrite", help="Replace the files of --json and --markdown if they exist.")
@flag("--quiet", "No progress.")
def command(
    annotations: Path,
    results: Path,
    images: Path | None,
    json_file: Path | None,
    markdown_file: Path | None,
    **options: Any,
) -> None:
    """Score masks against the truth: mask AP, boundary AP and how well each mask fits.

    With --before, the same of the masks the results were refined from, and what
    changed. Needs the extra "eval". The detections' boxes are not looked at: size
    classes follow the masks.

    \b
    transfiner-refine evaluate --annotations instances_val2017.json \\
        --before detections.json --results refined.json
    """
    if options["error_analysis"] and images is None:
        raise click.UsageError("--error-analysis looks at the images; give --images")
    import json

    from transfiner_refine.evaluation.evaluate import Analysis, Settings, evaluate
    from transfiner_refine.evaluation.tables import as_json, as_markdown, as_text
    from transfiner_refine.output import atomic_file, check_output_file

    if json_file is not None and json_file == markdown_file:
        raise click.UsageError("--json and --markdown need a file each")
    inputs = (annotations, results, images, options["before"], options["match"])
    for output in filter(None, (json_file, markdown_file)):
        check_output_file(output, filter(None, inputs), overwrite=options["overwrite"])
    analysis = None
    if options["error_analysis"] and images is not None:
        from transfiner_refine.refiner import load_refiner  # here, because it imports torch

        weights = options["weights"]
        refiner = load_refiner(weights, device=options["device"], engine="torch")
        analysis = Analysis(images, refiner, Path(weights).name)
    evaluation = evaluate(
        annotations,
        results,
        before=options["before"],
        match=options["match"],
        settings=Settings(options["boundary_ratio"], options["min_area"], options["min_coarse_iou"]),
        analysis=analysis,
        progress=not options["quiet"] and sys.stderr.isatty(),
    )
    per_class = options["per_class"]
    click.echo(as_text(evaluation, per_class=per_class))
    if json_file is not None:
        with atomic_file(json_file) as file:
            json.dump(as_json(evaluation, per_class=per_class), file, indent=2)
            file.write("\n")
    if markdown_file is not None:
        with atomic_file(markdown_file) as file:
            file.write(as_markdown(evaluation, per_class=per_class))
