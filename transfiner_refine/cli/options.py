"""Options that several commands share, each declared once, and what keeps renamed options working."""

from __future__ import annotations

import re
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


# a path that is not what it should be is found by the command itself, as one error with one exit code
FOLDER = FILE = ANY = click.Path(path_type=Path)

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


# options under their headings in the help; all else is under "Options"
_GROUPS = {
    "Input and output": (
        "images masks output before after annotations results match image_info format to class_names png_kind "
        "keep_boxes soft soft16 cutout overlay report polygons polygon_tolerance fit_masks orientation background "
        "image_side"
    ),
    "What is refined": "min_area score_threshold categories max_image_pixels refine_crowds",
    "Network": "weights device engine precision batch_size tiles gpus executor address workers",
    "Run": "executor address resume shard strict dry_run overwrite quiet as_json log_level help",
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


class _Device(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A name that a device can have; whether there is one, the command finds out."""

    name = "device"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            self.fail(f"{value!r} is none of auto, cpu, cuda, cuda:N and mps", param, ctx)
        return value


def _shared(*names: str, **settings: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, settings


_SHARED = {
    "images": _shared("--images", type=ANY, help="Folder of the images, or one image."),
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
    "device": _shared("--device", default="auto", type=_Device(), help="auto, cpu, cuda, cuda:N or mps."),
    "overwrite": _shared("--overwrite", is_flag=True, help="Replace the output if it exists."),
    "json": _shared("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout."),
    "output": _shared("--output", "-o", type=ANY, help="The file or folder to write."),
    "quiet": _shared(
        "--quiet", is_flag=True, help="No progress and no summary; errors are shown all the same."
    ),
}


def shared(name: str, **changes: Any) -> Callable[[Any], Any]:
    """One of the shared options; ``changes`` replaces its settings (``help``, ``required`` …)."""
    flags, settings = _SHARED[name]
    return option(*flags, **{**settings, **changes})


class Command(click.Command):
    """A command that takes its main paths without option names, too, and shows its options in groups.

    It accepts the former names of options, with a notice.

    Args:
        places: the options that paths stand for, in order.
        needed: those that have to be given in one way or the other.
    """

    def __init__(
        self, *arguments: Any, places: Sequence[str] = (), needed: Sequence[str] = (), **settings: Any
    ) -> None:
        super().__init__(*arguments, **settings)
        self._places, self._needed = places, needed
        if places:
            names = " ".join(name.upper() if name in needed else f"[{name.upper()}]" for name in places)
            self.params.insert(0, click.Argument(["given"], nargs=-1, type=ANY, metavar=names))
        levels = click.Choice(["debug", "info", "warning", "error"])
        self.params.append(
            click.Option(
                ["--log-level"], type=levels, expose_value=False, callback=_log, help="Say more on stderr."
            )
        )

    def _place(self, ctx: click.Context) -> None:
        """Paths without names take the places that are free."""
        given = list(ctx.params.pop("given", ()))
        free = [name for name in self._places if ctx.params.get(name) is None]
        if len(given) > len(free):
            wanted = " ".join(name.upper() for name in self._places)
            raise click.UsageError(f"one path too many, {given[len(free)]}; wanted are {wanted}", ctx)
        ctx.params.update(zip(free, given, strict=False))
        missing = [name for name in self._needed if ctx.params.get(name) is None]
        if missing and not ctx.resilient_parsing:
            names = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise click.UsageError(f"missing {names}", ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        named = (
            ("help" if "--help" in each.opts else each.name, each.get_help_record(ctx)) for each in options
        )
        rows = {name: row for name, row in named if row}
        sections = {
            heading: [rows.pop(name) for name in names.split() if name in rows]
            for heading, names in _GROUPS.items()
        }
        last = sections.popitem()
        for heading, found in (*sections.items(), ("Options", list(rows.values())), last):
            if found:
                with formatter.section(heading):
                    formatter.write_dl(found)

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
        rest = super().parse_args(ctx, args)
        self._place(ctx)
        return rest


def _log(ctx: click.Context, _: click.Parameter, level: str | None) -> None:
    if level is not None and not ctx.resilient_parsing:
        import logging  # here, because hardly any command needs it

        logging.basicConfig(format="transfiner-refine: %(levelname)s: %(message)s")
        logging.getLogger("transfiner_refine").setLevel(level.upper())


def notice(old: str, new: str) -> None:
    """Says on stderr that a name has changed."""
    click.echo(
        f"transfiner-refine: {old} is now called {new}; the old name will go in the next version", err=True
    )


def report_errors(errors: Iterable[object]) -> None:
    """Prints one line for each error on stderr."""
    for error in errors:
        click.echo(f"transfiner-refine: {error}", err=True)
