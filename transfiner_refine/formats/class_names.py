"""Class names in a text file, one a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transfiner_refine.errors import InputError

__all__ = ["read_class_names", "write_class_names"]

_MOST_CLASSES = 100_000


def read_class_names(path: Path) -> dict[int, str]:
    """Names by class number; the first line is class 0, and an empty line names none.

    Raises:
        InputError: the file cannot be read, or is no list of names.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="check the path") from error
    except UnicodeDecodeError:
        raise InputError("is no text in UTF-8", file=path, remedy="write one class name a line") from None
    if len(lines) > _MOST_CLASSES:
        raise InputError(
            f"has {len(lines)} lines", file=path, remedy="give a text file with one class name a line"
        )
    return {number: line.strip() for number, line in enumerate(lines) if line.strip()}


def write_class_names(path: Path, names: Mapping[int, str]) -> None:
    """Writes names so that ``read_class_names`` gives them back; ids that are no line numbers are left out."""
    known = {number: name for number, name in names.items() if 0 <= number < _MOST_CLASSES}
    lines = [" ".join(known.get(number, "").split()) for number in range(max(known, default=-1) + 1)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
