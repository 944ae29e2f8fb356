"""``transfiner-refine demo``: bundled photos with a real detector's masks, refined, and a page to look at them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from transfiner_refine.cli.options import Command, flag, report_errors, shared

__all__ = ["command"]


@click.command(
    "demo", cls=Command, epilog="Exit codes: 0 all done, 1 something could not be used, 2 wrong usage."
)
@shared("output", default=Path("transfiner-demo"), help="Folder to write to.")
@flag("--open", "Open the page in a browser.")
@shared("weights")
@shared("device")
@shared("overwrite", help="Replace the folder if it exists.")
@shared("json")
@shared("quiet")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    output: Path,
    weights: str,
    device: str,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Refine five bundled photos with masks of a real detector, its mistakes included,
    and make a page that shows them before and after.

    \b
    transfiner-refine demo
    """
    from transfiner_refine.demo import run_demo
    from transfiner_refine.refiner import load_refiner

    is_quiet = quiet or options["as_json"]
    demo = run_demo(output, load_refiner(weights, device=device), overwrite=overwrite, progress=not is_quiet)
    report_errors(demo.summary.errors)
    if options["as_json"]:
        click.echo(json.dumps({**demo.summary.as_json(), "page": str(demo.page)}))
    elif not quiet:
        click.echo("\n".join([*demo.summary.lines(), f"Open {demo.page} in a browser."]))
    if options["open"]:
        click.launch(str(demo.page.absolute()))
    ctx.exit(demo.summary.exit_code)
