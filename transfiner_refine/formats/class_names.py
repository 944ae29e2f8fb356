"""Class names in a text file, one a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transfiner_refine.errors import InputError
from transfiner_refine.formats.folders import read_file
from transfiner_refine.formats.records import Source

_MOST_CLASSES = 100_000


def read_class_names(path: Path) -> dict[int, str]:
    """Names by class number (first line = 0; an empty line names none); raises InputError where it is none."""
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("is no text in UTF-8", file=path, remedy="write one class name a line") from None
    lines = text.splitlines()
    if len(lines) > _MOST_CLASSES:
        remedy = "give a text file with one class name a line"
        raise InputError(f"has {len(lines)} lines", file=path, remedy=remedy)
    fields = [line.replace(":", " : ").split() for line in lines if line.strip()]
    numbers = [line[0] for line in fields if len(line) > 1]  # "0 cup" is numbered, "0" may be a name
    numbered = len(numbers) > 1 and numbers in [[str(n + at) for n in range(len(fields))] for at in (0, 1)]
    is_yaml = any(line.startswith(("names:", "nc:")) for line in lines)
    if numbered or is_yaml or text.lstrip()[:1] in ("[", "{"):
        reason = "is JSON or YAML, or numbers its lines"
        raise InputError(reason, file=path, remedy="write one class name a line")
    return {number: line.strip() for number, line in enumerate(lines) if line.strip()}


def check_class_names(source: Source) -> None:
    """Raises InputError where the name of a category is no text that can be written."""
    for number, name in source.categories.items():
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            record = f"the name of category {number}"
            reason = f"has half of a pair of characters: {name!r}"
            raise InputError(reason, record=record, remedy="rename the category")


def write_class_names(path: Path, names: Mapping[int, str]) -> None:
    """Writes names so that ``read_class_names`` gives them back; ids that are no line numbers are left out."""
    known = {number: name for number, name in names.items() if 0 <= number < _MOST_CLASSES}
    lines = [" ".join(known.get(number, "").split()) for number in range(max(known, default=-1) + 1)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
