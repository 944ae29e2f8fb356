"""``transfiner-refine explain``: how the method works on one mask, as a picture."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    "explain",
    short_help="Draw how the method works on one mask.",
    epilog="Exit codes: 0 all done, 1 a file could not be used (it is named), 2 wrong usage.",
)
@click.argument("image", type=_FILE)
@click.argument("mask", type=_FILE)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("explain.png"),
    show_default=True,
    help="The PNG to write.",
)
@click.option(
    "--id", "instance_id", type=click.IntRange(min=1), help="Which instance, if MASK is a map of ids."
)
@click.option(
    "--truth", type=_FILE, help="The true mask, a PNG: adds scores, and tells right from wrong changes."
)
@click.option(
    "--weights", default="lite", show_default=True, help="Name of shipped weights, or path of a checkpoint."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--quiet", is_flag=True, help="Say nothing; errors are shown all the same.")
def command(
    image: Path,
    mask: Path,
    output: Path,
    instance_id: int | None,
    truth: Path | None,
    weights: str,
    device: str,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Draw what happens to one mask: where it is taken to be wrong, the quadtree, the
    labels of its nodes level by level, and the result.

    IMAGE is a photo, MASK a PNG of the same size: one mask (binary or soft), or a map
    of ids.

    \b
    transfiner-refine explain photos/cat.jpg masks/cat.png --output explain.png
    """
    from transfiner_refine.explain import explain_files

    explain_files(
        image,
        mask,
        output,
        instance_id=instance_id,
        truth=truth,
        weights=weights,
        device=device,
        overwrite=overwrite,
    )
    if not quiet:
        click.echo(f"Drawn: {output}")
