"""``transfiner-refine explain``: how the method works on one mask, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from transfiner_refine.cli.options import FILE, Command, option, shared

__all__ = ["command"]


@click.command(
    "explain",
    cls=Command,
    epilog="Exit codes: 0 all done, 1 a file could not be used (it is named), 2 wrong usage.",
)
@click.argument("image", type=FILE)
@click.argument("mask", type=FILE)
@option("--output", "-o", type=FILE, default=Path("explain.png"), help="The PNG to write.")
@option("--id", "instance_id", type=click.IntRange(min=1), help="Which instance, if MASK is a map of ids.")
@option("--truth", type=FILE, help="The true mask, a PNG: adds scores, and tells right from wrong changes.")
@shared("weights")
@shared("device")
@shared("overwrite")
@shared("quiet")
def command(image: Path, mask: Path, output: Path, quiet: bool, **options: Any) -> None:
    """Draw what happens to one mask: where it is taken to be wrong, the quadtree, the
    labels of its nodes level by level, and the result.

    IMAGE is an image, MASK a PNG of the same size: one mask (binary or soft), or a map
    of ids.

    \b
    transfiner-refine explain photos/cat.jpg masks/cat.png --output explain.png
    """
    from transfiner_refine.explain import explain_files

    explain_files(image, mask, output, **options)
    if not quiet:
        click.echo(f"Drawn: {output}")
