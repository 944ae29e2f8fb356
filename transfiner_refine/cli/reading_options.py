"""Options that say how masks are read, the same for each command that reads them; only their help is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from transfiner_refine.cli.format_names import FORMAT_NAMES

__all__ = ["from_option", "max_image_pixels_option", "png_kind_option", "to_option"]

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def from_option(text: str) -> _Decorator:
    """``--from``, as the parameter ``format``."""
    choice = click.Choice(["auto", *FORMAT_NAMES])
    return click.option(
        "--from", "format", type=choice, metavar="FORMAT", default="auto", show_default=True, help=text
    )


def to_option(text: str) -> _Decorator:
    """``--to``."""
    default = "[default: that of the masks]"
    return click.option("--to", type=click.Choice(FORMAT_NAMES), metavar="FORMAT", help=f"{text}  {default}")


def png_kind_option(text: str) -> _Decorator:
    """``--png-kind``."""
    choice = click.Choice(["auto", "binary", "id-map"])
    return click.option("--png-kind", type=choice, default="auto", show_default=True, help=text)


def max_image_pixels_option(text: str) -> _Decorator:
    """``--max-image-pixels``."""
    return click.option(
        "--max-image-pixels",
        type=click.IntRange(min=1),
        default=400_000_000,  # formats.image_file.MAX_IMAGE_PIXELS, whose import would bring in Pillow
        show_default=True,
        help=text,
    )
