"""``transfiner-refine merge``: the outputs of ``refine --shard`` in, the output of one run out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from transfiner_refine.cli.options import ANY, Command, flag, option, report_errors, shared

__all__ = ["command"]


@click.command(
    "merge",
    cls=Command,
    epilog="Exit codes: 0 all done, 1 some records were not refined (each is named, the others are written) or the "
    "shards cannot be merged, 2 wrong usage, 130 interrupted.",
)
@click.argument("shards", nargs=-1, required=True, type=ANY)
@option("--output", "-o", type=ANY, required=True, help="Where the refined masks go.")
@option("--masks", type=ANY, help="Where the coarse masks are now.  [default: where the shards had them]")
@shared("images", help="Where the folder of the images is now.  [default: where the shards had it]")
@shared("image_info", help="Where the file of --image-info is now.")
@shared("class_names", help="Where the file of --class-names is now.")
@shared("to", help="Format of the output, if it is to be another.  [default: that of the masks]")
@flag("--keep-boxes", "Leave bbox and area as they are; otherwise they follow the new mask.")
@shared("overwrite")
@shared("json")
@shared("quiet")
@click.pass_context
def command(
    ctx: click.Context, /, shards: tuple[Path, ...], output: Path, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Write one output from the shards of a run.

    Takes the files that refine --shard 1/N … N/N wrote, or a folder of them. The output
    is byte for byte that of one run without --shard.

    \b
    for i in 1 2 3; do
      transfiner-refine refine --images photos --masks detections.json \\
          --shard $i/3 --output shards/$i
    done
    transfiner-refine merge shards --output refined.json
    """
    from transfiner_refine.pipeline import merge_shards  # here, so that --help does not wait for numpy

    summary = merge_shards(shards, output, progress=not (quiet or as_json), **options)
    report_errors(summary.errors)
    if as_json:
        click.echo(json.dumps(summary.as_json()))
    elif not quiet:
        click.echo("\n".join(summary.lines()))
    ctx.exit(summary.exit_code)
