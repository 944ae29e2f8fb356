"""``transfiner-refine evaluate``: what refining gained, in numbers."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from transfiner_refine.cli.options import ANY, FILE, FOLDER, Command, count, flag, option, shared

__all__ = ["command"]


@click.command(
    "evaluate",
    cls=Command,
    places=("annotations", "results"),
    needed=("annotations", "results"),
    epilog="Exit codes: 0 all done, 1 a file or a record could not be used (it is named), 2 wrong usage.",
)
@option(
    "--annotations",
    type=ANY,
    help="The truth: a COCO or LVIS annotation file, or masks in any format that refine reads.",
)
@option("--results", type=ANY, help="The refined masks, in any format.")
@option("--before", type=ANY, help="The masks they were refined from, in the same order.")
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
@shared(
    "images", help="Folder of the images, for --error-analysis and for masks that are named after images."
)
@shared("weights", help="Name or path of the weights for --error-analysis.")
@shared("device", help="Device for --error-analysis.")
@option("--json", type=FILE, help="Write all numbers to this file as JSON, with a row for each instance.")
@option("--csv", type=FILE, help="Write the rows of the instances to this file as CSV.")
@option("--markdown", type=FILE, help="Write the tables to this file as Markdown.")
@option(
    "--plots", type=FOLDER, help="Write plots to this folder as PNG: before and after, gain by size, scores."
)
@shared("from")
@shared("png_kind")
@shared("class_names")
@shared("fit_masks")
@shared("orientation")
@shared("background")
@shared("overwrite", help="Replace the files and the folder that are written if they exist.")
@shared("quiet")
def command(
    annotations: Path,
    results: Path,
    images: Path | None,
    json: Path | None,
    csv: Path | None,
    markdown: Path | None,
    plots: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Score masks against the truth: mask AP, boundary AP and how well each mask fits.

    With --before, the same of the masks the results were refined from, and what
    changed. Needs the extra "eval". Truth and masks may be of any format that refine
    reads, and of different ones: images and classes are then told by their names.

    \b
    transfiner-refine evaluate --annotations instances_val2017.json \\
        --before detections.json --results refined.json
    """
    if options["error_analysis"] and images is None:
        raise click.UsageError("--error-analysis looks at the images; give --images")
    files = [path for path in (json, csv, markdown) if path is not None]
    if len({path.resolve() for path in (*files, *filter(None, [plots]))}) < len(files) + (plots is not None):
        raise click.UsageError("--json, --csv, --markdown and --plots need a name each")
    from transfiner_refine.evaluation.evaluate import Analysis, Settings, evaluate
    from transfiner_refine.evaluation.tables import as_markdown, as_text, write_csv, write_json
    from transfiner_refine.formats.registry import open_source
    from transfiner_refine.output import atomic_file, check_output_file, check_output_folder

    inputs = [path for path in (annotations, results, images, options["before"], options["match"]) if path]
    for output in files:
        check_output_file(output, inputs, overwrite=options["overwrite"])
    if plots is not None:
        check_output_folder(plots, inputs, overwrite=options["overwrite"])
    analysis = None
    if options["error_analysis"] and images is not None:
        from transfiner_refine.refiner import load_refiner  # here, because it imports torch

        weights = options["weights"]
        refiner = load_refiner(weights, device=options["device"], engine="torch")
        analysis = Analysis(images, refiner, Path(weights).name)
    reading = ("format", "png_kind", "class_names", "fit_masks", "orientation", "background")
    evaluation = evaluate(
        annotations,
        results,
        before=options["before"],
        match=options["match"],
        settings=Settings(options["boundary_ratio"], options["min_area"], options["min_coarse_iou"]),
        analysis=analysis,
        opened=partial(open_source, images=images, **{name: options[name] for name in reading}),
        progress=not quiet and sys.stderr.isatty(),
    )
    per_class = options["per_class"]
    if not quiet:
        click.echo(as_text(evaluation, per_class=per_class))
    if json is not None:
        write_json(evaluation, json, per_class=per_class)
    if csv is not None:
        write_csv(evaluation, csv)
    if markdown is not None:
        with atomic_file(markdown) as file:
            file.write(as_markdown(evaluation, per_class=per_class))
    if plots is not None:
        from transfiner_refine.evaluation.plots import draw_plots

        draw_plots(evaluation, plots)
