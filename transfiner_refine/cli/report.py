"""``transfiner-refine report``: before and after, to look at."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_ANY = click.Path(exists=True, path_type=Path)
_NEW_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(
    "report",
    short_help="Make a page that shows masks before and after.",
    epilog="Exit codes: 0 all done, 1 some images or records could not be used (each is named), 2 wrong usage.",
)
@click.option("--images", type=_FOLDER, required=True, help="Folder of the photos.")
@click.option("--before", type=_ANY, required=True, help="The coarse masks: COCO JSON, or a folder of PNGs.")
@click.option("--after", type=_ANY, required=True, help="The refined masks, in the same format and order.")
@click.option(
    "--annotations",
    type=_ANY,
    help="The truth, to score and sort by: a COCO annotation file, for PNGs a folder of the same names.",
)
@click.option(
    "--match",
    type=_FILE,
    help="JSON list with each result's annotation_id; without it, the records' own, or the best IoU.",
)
@click.option(
    "--image-info",
    type=_FILE,
    help="COCO annotation file that says which image id is which photo, as for refine.  [default: --annotations]",
)
@click.option(
    "--png-kind",
    type=click.Choice(["auto", "binary", "id-map"]),
    default="auto",
    show_default=True,
    help="What the PNGs are, as for refine.",
)
@click.option("--output", type=_NEW_FOLDER, help="Folder for the page; open its index.html.")
@click.option(
    "--overlay", type=_NEW_FOLDER, help="Folder for PNGs of the photos with their masks, before and after."
)
@click.option(
    "--nodes", is_flag=True, help="Show the quadtree's nodes; runs the network on the coarse masks again."
)
@click.option("--weights", default="lite", show_default=True, help="Name or path of the weights for --nodes.")
@click.option("--device", default="auto", show_default=True, help="Device for --nodes.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="Most images to show, 0 for all. Of more, the best, the worst and random ones are taken.",
)
@click.option(
    "--photo-side",
    type=click.IntRange(min=0),
    default=1600,
    show_default=True,
    help="Longer side of the page's photos in pixels, 0 for full size. Outlines are exact in any case.",
)
@click.option("--overwrite", is_flag=True, help="The folders may hold files already.")
@click.option("--quiet", is_flag=True, help="No progress and no summary; errors are shown all the same.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    images: Path,
    before: Path,
    after: Path,
    annotations: Path | None,
    match: Path | None,
    image_info: Path | None,
    png_kind: str,
    output: Path | None,
    overlay: Path | None,
    nodes: bool,
    weights: str,
    device: str,
    limit: int,
    photo_side: int,
    overwrite: bool,
    quiet: bool,
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
    if nodes and output is not None:
        from transfiner_refine.refiner import load_refiner  # here, because it imports torch

        refiner = load_refiner(weights, device=device, engine="torch")
    built = build_report(
        images,
        before,
        after,
        output,
        annotations=annotations,
        match=match,
        image_info=image_info,
        png_kind=png_kind,  # type: ignore[arg-type]
        overlay=overlay,
        refiner=refiner,
        limit=limit,
        photo_side=photo_side,
        overwrite=overwrite,
        progress=not quiet,
    )
    for fault in built.faults:
        click.echo(f"transfiner-refine: {fault}", err=True)
    if not quiet:
        click.echo("\n".join(built.lines()))
    ctx.exit(1 if built.faults else 0)
