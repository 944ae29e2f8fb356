"""``-`` in the place of a path: standard input and output as files of this run alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

_STARTS = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"[": ".json", b"{": ".json"}


@contextmanager
def standard_streams(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The options of ``refine`` with files for ``-``; what is written in the place of ``-`` goes to standard output.

    Raises:
        click.UsageError: standard input cannot be both image and masks, or a folder would go to standard output.
        MaskRefineError: of the block, in which standard input and output are called by their names.
    """
    from transfiner_refine.errors import (  # here, because help must not wait for numpy
        InputError,
        MaskRefineError,
    )
    from transfiner_refine.formats.registry import recognise

    from_stdin = [name for name in ("images", "masks") if str(options[name]) == "-"]
    to_stdout = str(options["output"]) == "-"
    if len(from_stdin) > 1:
        raise click.UsageError("standard input is either the image or the masks; give a path for the other")
    if not (from_stdin or to_stdout):
        yield options
        return
    with TemporaryDirectory(prefix="transfiner-refine-") as folder:
        try:
            if from_stdin:
                data = sys.stdin.buffer.read()
                if not data.strip():
                    raise InputError(
                        "is empty", file="standard input", remedy="pipe an image or masks into it"
                    )
                suffix = next((_STARTS[start] for start in _STARTS if data.lstrip().startswith(start)), "")
                path = Path(folder, f"stdin{suffix}")
                path.write_bytes(data)
                options = {**options, from_stdin[0]: path}
            if to_stdout:
                found = recognise(options["masks"], options["format"])
                if options["picture"] is None and (options["to"] or found.is_folder):
                    raise click.UsageError("a folder or --to does not go to standard output; give --output")
                is_png = options["picture"] is not None or ".png" in found.suffixes
                options = {**options, "output": Path(folder, "stdout.png" if is_png else "stdout.json")}
            yield options
        except MaskRefineError as error:
            if error.file is None or Path(folder) not in Path(error.file).parents:
                raise
            name = "standard input" if "stdin" in Path(error.file).name else "standard output"
            raise error.at(name) from error
        if to_stdout and options["output"].exists():
            sys.stdout.buffer.write(options["output"].read_bytes())
            sys.stdout.flush()
