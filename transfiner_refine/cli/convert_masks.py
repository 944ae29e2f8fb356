"""``transfiner-refine convert-masks``: masks of one format in another."""

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

_WHAT_THEY_ARE = {
    "coco-results": "COCO or LVIS results: a JSON list",
    "coco-results-jsonl": "the same records, one a line",
    "coco-annotations": "COCO or LVIS annotations: one JSON file",
    "coco-panoptic": "a JSON file, and a folder of PNGs named like it",
    "cityscapes-results": "a folder of txt files and mask PNGs",
    "cityscapes-ids": "a folder of *_instanceIds.png",
    "voc": "a folder of Pascal VOC's SegmentationObject PNGs",
    "davis": "a folder of palette PNGs for each video",
    "png": "a folder of PNGs, read: one a mask or id maps; written: one a mask",
    "id-maps": "a folder of 8 or 16-bit PNGs, one id a pixel",
    "yolo-seg": "a folder of YOLO segmentation txt files",
    "labelme": "a folder of labelme JSON files",
}


class _CommandWithFormats(click.Command):
    """Lists the formats below the options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Formats"):
            formatter.write_dl([(name, _WHAT_THEY_ARE[name]) for name in FORMAT_NAMES])


@click.command(
    "convert-masks",
    cls=_CommandWithFormats,
    short_help="Write masks in another format.",
    epilog="Exit codes: 0 all done, 1 something could not be read or held (each is named, the rest is "
    "written), 2 wrong usage, 130 interrupted.",
)
@click.option("--masks", type=_ANY, required=True, help="The masks: a file or a folder.")
@click.option("--output", type=_ANY, required=True, help="The file or folder to write; .gz packs JSON.")
@to_option("Format to write.")
@from_option("Format of the masks, if their content should not decide.")
@click.option(
    "--images", type=_FOLDER, help="Folder of the photos; needed where only they tell an image's size."
)
@click.option(
    "--image-info",
    type=_FILE,
    help="COCO or LVIS annotation file that says which image id is which photo, and names the categories. "
    "Only for results.",
)
@click.option("--class-names", type=_FILE, help="Text file with one class name a line, for YOLO and VOC.")
@png_kind_option("What plain PNGs are: one mask each, or maps of ids. auto looks into the pixels.")
@max_image_pixels_option("Do not open mask images of more pixels.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--strict", is_flag=True, help="Write nothing if a single record cannot be read.")
@click.option("--quiet", is_flag=True, help="No summary; errors are shown all the same.")
@click.pass_context
def command(ctx: click.Context, /, quiet: bool, **options: Any) -> None:
    """Write masks in another format.

    Ids, classes, scores and the order stay as far as the new format holds them. Where
    it holds one id a pixel, an overlap goes to the higher score, then to the earlier.
    Without --to, the input is copied in its own format: a way to check it.

    \b
    transfiner-refine convert-masks --masks detections.json \\
        --to coco-annotations --output annotations.json
    transfiner-refine convert-masks --masks VOC2012 --to coco-panoptic \\
        --output panoptic.json
    """
    from transfiner_refine.formats.convert import (
        convert_masks,
    )  # here, so that --help does not wait for numpy

    converted = convert_masks(**options)
    for error in converted.errors:
        click.echo(f"transfiner-refine: {error}", err=True)
    if not quiet:
        click.echo("\n".join(converted.lines()))
    ctx.exit(converted.exit_code)
