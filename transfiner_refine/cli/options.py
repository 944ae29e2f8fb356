"""Options that several commands share, each declared once, and what keeps renamed options working."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

__all__ = [
    "ANY",
    "FILE",
    "FOLDER",
    "FORMAT_NAMES",
    "Command",
    "choice",
    "count",
    "flag",
    "notice",
    "option",
    "report_errors",
    "shared",
]

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
ANY = click.Path(path_type=Path)

# the formats' own names, in the order of their registry; listed here because help must not wait for the formats
FORMAT_NAMES = (
    "coco-results",
    "coco-results-jsonl",
    "coco-annotations",
    "coco-panoptic",
    "sam",
    "mmdetection",
    "cityscapes-results",
    "cityscapes-ids",
    "voc",
    "davis",
    "sam2-video",
    "png",
    "label-maps",
    "yolo-seg",
    "labelme",
    "numpy",
    "numpy-file",
    "cvat",
    "label-studio",
    "via",
    "via-csv",
    "supervisely",
    "mask-image",
)

# old: new; the old names work until the next version
_RENAMED_VALUES = {"id-map": "label-map", "id-maps": "label-maps"}  # of --from, --to and --png-kind
_RENAMED = {
    "--photo-side": "--image-side",
    "--close-ups": "--tiles",
    "--no-close-ups": "--no-tiles",
}


def option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """``click.option`` whose default, where there is one, shows in the help."""
    return click.option(
        *names, show_default="default" in settings and not settings.get("is_flag"), **settings
    )


def flag(name: str, text: str) -> Callable[[Any], Any]:
    """A switch that is off unless it is given."""
    return option(name, is_flag=True, help=text)


def choice(name: str, values: Sequence[str], text: str) -> Callable[[Any], Any]:
    """One of several words, the first unless it is given."""
    return option(name, type=click.Choice(values), default=values[0], help=text)


def count(name: str, least: int, text: str, **settings: Any) -> Callable[[Any], Any]:
    """A whole number from ``least`` on."""
    return option(name, type=click.IntRange(min=least), help=text, **settings)


def id_or_none(text: str) -> int | str:
    """A value of a label map, or "none"; ValueError where it is neither."""
    if text != "none" and not (text.isdecimal() and int(text) < 1 << 31):
        raise ValueError(f"{text!r} is no value of a label map, and not none")
    return text if text == "none" else int(text)


def _shared(*names: str, **settings: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, settings


_SHARED = {
    "images": _shared("--images", type=FOLDER, help="Folder of the images."),
    "image_info": _shared(
        "--image-info",
        type=FILE,
        help="COCO or LVIS annotation file that says which image id is which image, and names the categories. "
        "Only for COCO results, where images are not named after their ids.",
    ),
    "class_names": _shared(
        "--class-names",
        type=FILE,
        help="Text file with one class name a line, for formats that number their classes.",
    ),
    "from": _shared(
        "--from",
        "format",
        type=click.Choice(["auto", *FORMAT_NAMES]),
        metavar="FORMAT",
        default="auto",
        help="Format of the masks, if their content should not decide.",
    ),
    "to": _shared(
        "--to",
        type=click.Choice(FORMAT_NAMES),
        metavar="FORMAT",
        help="Format of the output.  [default: that of the masks]",
    ),
    "png_kind": _shared(
        "--png-kind",
        type=click.Choice(["auto", "binary", "label-map"]),
        default="auto",
        help="What plain PNGs are: one mask each (0/255, 0/1 or soft), or maps of ids with 0 as background. auto looks "
        "into the pixels.",
    ),
    "fit_masks": _shared(
        "--fit-masks",
        is_flag=True,
        help="Stretch masks of another size over their image (half the resolution, a pixel narrower). For mask images, "
        "NumPy arrays and COCO.",
    ),
    "orientation": _shared(
        "--orientation",
        type=click.Choice(["auto", "upright", "stored"]),
        default="auto",
        help="How images lie under their masks: turned upright by their EXIF orientation, or as stored. auto: as the "
        "size of the masks says.",
    ),
    "refine_crowds": _shared(
        "--refine-crowds",
        is_flag=True,
        help="Treat COCO's crowd regions as instances like all others; CVAT marks every brush mask as one.",
    ),
    "background": _shared(
        "--background",
        type=id_or_none,
        metavar="N|none",
        default="0",
        help="The value of label maps that is no instance; none: every value is one.",
    ),
    "max_image_pixels": _shared(
        "--max-image-pixels",
        type=click.IntRange(min=1),
        default=400_000_000,  # images.MAX_IMAGE_PIXELS, whose import would bring in Pillow
        help="Do not open images or mask images of more pixels; their masks stay as they are.",
    ),
    "polygon_tolerance": _shared(
        "--polygon-tolerance",
        type=click.FloatRange(0, 100),
        default=0.5,  # formats.records.POLYGON_TOLERANCE
        metavar="PIXELS",
        help="How far lines of polygons may be off, so that people can edit them; at least 0.99 IoU is kept. 0 "
        "writes masks to the pixel, with a point for each step.",
    ),
    "match": _shared(
        "--match",
        type=FILE,
        help="JSON list with each result's annotation_id; without it, the records' own, or the best IoU.",
    ),
    "weights": _shared(
        "--weights", default="lite", help="Name of built-in weights, or path of a checkpoint."
    ),
    "device": _shared("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps."),
    "overwrite": _shared("--overwrite", is_flag=True, help="Replace the output if it exists."),
    "quiet": _shared(
        "--quiet", is_flag=True, help="No progress and no summary; errors are shown all the same."
    ),
}


def shared(name: str, **changes: Any) -> Callable[[Any], Any]:
    """One of the shared options; ``changes`` replaces its settings (``help``, ``required`` …)."""
    flags, settings = _SHARED[name]
    return option(*flags, **{**settings, **changes})


class Command(click.Command):
    """A command that accepts the former names of its options, with a notice."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for position, argument in enumerate(args):
            if argument == "--":
                break
            name, equals, value = argument.partition("=")
            if not equals and position and args[position - 1] in ("--from", "--to", "--png-kind"):
                name, equals, value = "", "", argument
            if value in _RENAMED_VALUES and name in ("", "--from", "--to", "--png-kind"):
                notice(value, value := _RENAMED_VALUES[value])
                args[position] = name + equals + value
            if name in _RENAMED:
                args[position] = _RENAMED[name] + equals + value
                notice(name, _RENAMED[name])
        return super().parse_args(ctx, args)


def notice(old: str, new: str) -> None:
    """Says on stderr that a name has changed."""
    click.echo(
        f"transfiner-refine: {old} is now called {new}; the old name will go in the next version", err=True
    )


def report_errors(errors: Iterable[object]) -> None:
    """Prints one line for each error on stderr."""
    for error in errors:
        click.echo(f"transfiner-refine: {error}", err=True)
