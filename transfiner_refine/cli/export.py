"""``transfiner-refine export``: the refine step as ONNX programs."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("export", short_help="Write the refine step as ONNX programs.")
@click.argument("weights", default="lite")
@click.option("--output", type=_FOLDER, help="Folder to write to.  [default: the one of the weights file]")
@click.option("--format", "kind", type=click.Choice(["onnx"]), default="onnx", help="Kind of program.")
@click.option(
    "--size",
    "grids",
    type=click.Choice(["112", "224", "448"]),
    multiple=True,
    help="Only the programs of this size class (cells a side of its finest grid); may be given several times.",
)
@click.option(
    "--calibrate",
    type=_FOLDER,
    multiple=True,
    help="Data set (images/, annotations.json, coarse*.json) that programs in int8 are calibrated on, beside "
    "those in fp32; may be given several times.",
)
@click.option("--overwrite", is_flag=True, help="Replace programs that exist.")
@click.option("--quiet", is_flag=True, help="Say nothing; errors are shown all the same.")
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
