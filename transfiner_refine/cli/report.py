"""``transfiner-refine report``: before and after, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from transfiner_refine.cli.options import ANY, FOLDER, Command, count, flag, option, report_errors, shared

__all__ = ["command"]


@click.command(
    "report",
    cls=Command,
    places=("images", "before", "after"),
    needed=("images", "before", "after"),
    epilog="Exit codes: 0 all done, 1 some images or records could not be used (each is named), 2 wrong usage.",
)
@shared("images")
@option("--before", type=ANY, help="The coarse masks, in any format.")
@option("--after", type=ANY, help="The refined masks, in the same format and order.")
@option(
    "--annotations",
    type=ANY,
    help="The truth, to score and sort by: a COCO annotation file, or masks in any format.",
)
@shared("match")
@shared(
    "image_info",
    help="COCO annotation file that says which image id is which image, as for refine.  [default: --annotations]",
)
@shared("from")
@shared("png_kind")
@shared("fit_masks")
@shared("orientation")
@shared("refine_crowds")
@shared("background")
@shared("class_names")
@shared("max_image_pixels", help="Leave images and mask images of more pixels out.")
@option("--output", "-o", type=ANY, help="Folder for the page; open its index.html.")
@flag("--single-file", "--output is one HTML file that holds everything, to send it to somebody.")
@option("--title", default="", help="Title of the page.")
@option("--overlay", type=FOLDER, help="Folder for PNGs of the images with their masks, before and after.")
@flag("--nodes", "Show the quadtree's nodes; runs the network on the coarse masks again.")
@shared("weights", help="Name or path of the weights for --nodes, and for the heading.")
@shared("device", help="Device for --nodes.")
@count(
    "--limit",
    0,
    "Most images to show, 0 for all. Of more, the best, the worst and random ones are taken.",
    default=200,
)
@option(
    "--image-side",
    type=click.IntRange(min=0),
    default=1600,
    help="Longer side of the page's images in pixels, 0 for full size. Outlines are exact in any case.",
)
@shared("overwrite", help="Folders that hold files already are replaced as a whole.")
@shared("quiet")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    nodes: bool,
    weights: str,
    device: str,
    quiet: bool,
    output: Path | None,
    overlay: Path | None,
    **options: Any,
) -> None:
    """Show masks before and after on a page that opens from disk.

    The page needs no network and no server: a divider between before and after on
    each image, outlines to the pixel, zoom to the boundary, scores and sorting by
    gain or loss where the truth is given.

    \b
    transfiner-refine report --images photos --before detections.json \\
        --after refined.json --annotations truth.json --output report
    """
    if output is None and overlay is None:
        raise click.UsageError("nothing to make; give --output, --overlay or both")
    from transfiner_refine.report import build_report

    refiner = None
    named = ctx.get_parameter_source("weights") is not ParameterSource.DEFAULT
    if nodes and output is not None:
        from transfiner_refine.refiner import load_refiner  # here, because it imports torch

        refiner = load_refiner(weights, device=device, engine="torch")
    built = build_report(
        output=output,
        overlay=overlay,
        refiner=refiner,
        weights=Path(weights).name if named or nodes else "",
        progress=not quiet,
        **options,
    )
    report_errors(built.faults)
    if not quiet:
        click.echo("\n".join(built.lines()))
    ctx.exit(1 if built.faults else 0)
