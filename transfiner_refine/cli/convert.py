"""``transfiner-refine convert``: an official checkpoint as a safetensors file."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("convert", short_help="Turn an official checkpoint into a safetensors file.")
@click.argument("source", metavar="CHECKPOINT", type=_FILE)
@click.option("--output", type=_FILE, required=True, help="The file to write; ends in .safetensors.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--quiet", is_flag=True, help="Say nothing; errors are shown all the same.")
def command(source: Path, output: Path, overwrite: bool, quiet: bool) -> None:
    """Turn a checkpoint of the official Mask Transfiner into a safetensors file.

    CHECKPOINT is a .pth or a detectron2 .pkl; the variant is recognised. What
    refining does not read is left out: proposal network, box head, predictors used in
    training alone, optimiser state. refine --weights takes both files.

    \b
    transfiner-refine convert transfiner_r101_3x.pth --output r101.safetensors
    """
    if output.suffix != ".safetensors":
        raise click.UsageError(f"--output {output} must end in .safetensors")
    from transfiner_refine.official import convert_official
    from transfiner_refine.output import check_output_file

    check_output_file(output, [source], overwrite=overwrite)
    found = convert_official(source, output)
    if not quiet:
        click.echo("\n".join((f"{output}: {found.architecture.name}", *found.lines())))
