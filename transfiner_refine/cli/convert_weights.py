"""``transfiner-refine convert-weights``: a checkpoint of the authors as a safetensors file."""

from __future__ import annotations

from pathlib import Path

import click

from transfiner_refine.cli.options import FILE, Command, option, shared

__all__ = ["command"]


@click.command("convert-weights", cls=Command)
@click.argument("source", metavar="CHECKPOINT", type=FILE)
@option("--output", "-o", type=FILE, required=True, help="The file to write; ends in .safetensors.")
@shared("overwrite")
@shared("quiet")
def command(source: Path, output: Path, overwrite: bool, quiet: bool) -> None:
    """Turn a checkpoint of the official Mask Transfiner into a safetensors file.

    CHECKPOINT is a .pth or a detectron2 .pkl; the variant is recognised. What
    refining does not read is left out: proposal network, box head, predictors used in
    training alone, optimiser state. refine --weights takes both files.

    \b
    transfiner-refine convert-weights transfiner_r101_3x.pth -o r101.safetensors
    """
    if output.suffix != ".safetensors":
        raise click.UsageError(f"--output {output} must end in .safetensors")
    from transfiner_refine.official import convert_weights
    from transfiner_refine.output import check_output_file

    check_output_file(output, [source], overwrite=overwrite)
    found = convert_weights(source, output)
    if not quiet:
        click.echo(f"{output}: {found.architecture.name}\n  {len(found.used)} tensors kept")
        click.echo(f"  {len(found.unused)} left out: {found.left_out}")
