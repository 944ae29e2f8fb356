"""``transfiner-refine weights``: which weights there are, and what a checkpoint is."""

from __future__ import annotations

from pathlib import Path

import click

from transfiner_refine.cli.options import ANY, Command

__all__ = ["command"]


@click.command("weights", cls=Command)
@click.argument("files", metavar="[CHECKPOINT]...", nargs=-1, type=ANY)
@click.pass_context
def command(ctx: click.Context, files: tuple[Path, ...]) -> None:
    """List the built-in weights, or describe checkpoint files.

    Of a file (of this package, or of the official Mask Transfiner): variant,
    parameters, classes, checksum, tensors that refining does not read, and tensors
    that are missing. A built-in name may stand for its file. Exit code 1 if a file
    cannot be used.

    \b
    transfiner-refine weights
    transfiner-refine weights transfiner_r101_3x.pth
    """
    from transfiner_refine.describe import describe
    from transfiner_refine.model.weights import built_in_weights, find_weights

    known = built_in_weights()
    asked = {str(file): find_weights(file) for file in files} if files else known
    if not asked:
        click.echo("no built-in weights: the installation is incomplete")
    usable = True
    for name, path in asked.items():
        lines, fits = describe(path)
        click.echo("\n".join((f"{name} ({path})" if name in known else name, *lines)))
        usable &= fits
    if not usable:
        ctx.exit(1)
