"""``transfiner-refine export``: the refine step as ONNX programs."""

from __future__ import annotations

from pathlib import Path

import click

from transfiner_refine.cli.options import FOLDER, Command, option, shared

__all__ = ["command"]


@click.command("export", cls=Command)
@click.argument("weights", default="lite")
@option("--output", "-o", type=FOLDER, help="Folder to write to.  [default: the one of the weights file]")
@option("--format", "kind", type=click.Choice(["onnx"]), default="onnx", help="Kind of program.")
@option(
    "--size",
    "grids",
    type=click.Choice(["112", "224", "448"]),
    multiple=True,
    help="Only the programs of this size class (cells a side of its finest grid); may be given several times.",
)
@option(
    "--calibrate",
    type=FOLDER,
    multiple=True,
    help="Data set (images/, annotations.json, coarse*.json) that programs in int8 are calibrated on, beside "
    "those in fp32; may be given several times.",
)
@shared("overwrite", help="Replace programs that exist.")
@shared("quiet")
def command(
    weights: str,
    output: Path | None,
    kind: str,  # noqa: ARG001 - there is one
    grids: tuple[str, ...],
    calibrate: tuple[Path, ...],
    overwrite: bool,
    quiet: bool,
) -> None:
    """Write the refine step, quadtree inside, as programs that onnxruntime runs.

    WEIGHTS is a built-in name or a file of this package. refine uses programs that lie
    beside the weights file on a CPU. There is one for each size of RoI, with and without
    the quadtree. Programs in fp32 read the weights file; those in int8 share a file of
    their own.

    \b
    transfiner-refine export runs/mine/refiner.safetensors
    transfiner-refine export runs/mine/refiner.safetensors --calibrate photos
    """
    from transfiner_refine.refine.export import export_files

    for file in export_files(
        weights, output, grids=[int(grid) for grid in grids], calibrate=calibrate, overwrite=overwrite
    ):
        if not quiet:
            click.echo(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
