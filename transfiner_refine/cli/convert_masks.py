"""``transfiner-refine convert-masks``: masks of one format in another."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from transfiner_refine.cli.options import ANY, FORMAT_NAMES, Command, flag, option, report_errors, shared

__all__ = ["command"]

_WHAT_THEY_ARE = {
    "coco-results": "COCO or LVIS results: a JSON list",
    "coco-results-jsonl": "the same records, one a line",
    "coco-annotations": "COCO or LVIS annotations: one JSON file",
    "coco-panoptic": "a JSON file, and a folder of PNGs named like it",
    "sam": "a JSON file for each image, as of SA-1B and segment-anything",
    "mmdetection": "a JSON file for each image, as in preds/",
    "cityscapes-results": "a folder of txt files and mask PNGs",
    "cityscapes-ids": "a folder of *_instanceIds.png",
    "voc": "a folder of Pascal VOC's SegmentationObject PNGs",
    "davis": "a folder of palette PNGs for each video",
    "sam2-video": "SAM 2's masks: VIDEO/OBJECT/FRAME.png",
    "png": "a folder of PNGs, read: one a mask or label maps; written: one a mask",
    "label-maps": "a folder of 8 or 16-bit PNGs, one id a pixel",
    "yolo-seg": "a folder of YOLO segmentation txt files",
    "labelme": "a folder of labelme JSON files",
    "numpy": "a folder of .npz or .npy files, one an image",
    "numpy-file": "one .npz or .npy file",
    "cvat": "CVAT for images 1.1: an XML file",
    "label-studio": "Label Studio's JSON, with brushes and polygons",
    "via": "a project or annotations of VIA (VGG Image Annotator) as JSON",
    "via-csv": "annotations of VIA as CSV",
    "supervisely": "a project or data set of Supervisely",
    "mask-image": "one PNG: a mask, or a map of ids; read: any image file",
}


class _CommandWithFormats(Command):
    """Lists the formats below the options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Formats"):
            formatter.write_dl([(name, _WHAT_THEY_ARE[name]) for name in FORMAT_NAMES])


@click.command(
    "convert-masks",
    cls=_CommandWithFormats,
    places=("masks",),
    needed=("masks", "output"),
    epilog="Exit codes: 0 all done, 1 something could not be read or held (each is named, the rest is "
    "written), 2 wrong usage, 130 interrupted.",
)
@option("--masks", type=ANY, help="The masks: a file or a folder.")
@option("--output", "-o", type=ANY, help="The file or folder to write; .gz packs JSON.")
@shared("to")
@shared("from")
@shared("images", help="Folder of the images; needed where only they tell an image's size.")
@shared("image_info")
@shared("class_names")
@shared("png_kind")
@shared("fit_masks")
@shared("orientation")
@shared("refine_crowds")
@shared("background")
@shared("max_image_pixels", help="Do not open mask images of more pixels.")
@shared("polygon_tolerance", default=0)
@shared("overwrite")
@flag("--strict", "Write nothing if a single record cannot be read.")
@shared("json")
@shared("quiet")
@click.pass_context
def command(ctx: click.Context, /, quiet: bool, as_json: bool, **options: Any) -> None:
    """Write masks in another format.

    Ids, classes, scores and the order stay as far as the new format holds them. Where
    it holds one id a pixel, an overlap goes to the higher score, then to the earlier.
    Without --to, the input is copied in its own format: a way to check it.

    \b
    transfiner-refine convert-masks detections.json -o annotations.json \\
        --to coco-annotations
    transfiner-refine convert-masks --masks VOC2012 --to coco-panoptic \\
        --output panoptic.json
    """
    from transfiner_refine.formats.convert import convert_masks  # here: --help must not wait for numpy

    converted = convert_masks(**options)
    report_errors(converted.errors)
    if as_json:
        facts = {**asdict(converted), "errors": [str(error) for error in converted.errors]}
        click.echo(json.dumps(facts))
    elif not quiet:
        click.echo("\n".join(converted.lines()))
    ctx.exit(converted.exit_code)
