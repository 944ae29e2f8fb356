"""Lines of text files: read whole and checked, or the first few for a look."""

from __future__ import annotations

from pathlib import Path

from transfiner_refine.errors import InputError
from transfiner_refine.formats.folders import read_file

__all__ = ["LINES_LOOKED_AT", "first_lines", "read_lines"]

LINES_LOOKED_AT = 5
_BYTES_LOOKED_AT = 1 << 16


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(number from 1, text without line ending) of each line.

    Raises:
        InputError: the file cannot be read, or is no text.
    """
    try:
        text = read_file(path, "check --masks").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("is no text in UTF-8", file=path, remedy="replace the file") from None
    return [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1)]


def first_lines(path: Path) -> list[str]:
    """The first lines with anything in them, complete ones only; none of a file that cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(_BYTES_LOOKED_AT)
    except OSError:
        return []
    lines = start.decode("utf-8-sig", errors="replace").split("\n")
    if len(start) == _BYTES_LOOKED_AT and len(lines) > 1:
        lines.pop()
    return [line.strip() for line in lines if line.strip()][:LINES_LOOKED_AT]
