"""Class names: a text file with one a line, ``data.yaml`` as YOLO data sets have it, or a JSON list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from transfiner_refine.errors import InputError, short
from transfiner_refine.formats.folders import read_file
from transfiner_refine.formats.json_stream import whole
from transfiner_refine.formats.records import Source

CLASSES_FILE, DATA_FILE = "classes.txt", "data.yaml"
_MOST_CLASSES = 100_000


def read_class_names(path: Path) -> dict[int, str]:
    """Names by class number.

    Of a text file the first line is class 0; an empty line names none; lines may all begin with their numbers. Of YAML
    or JSON, ``names`` or the whole is a list, or an object of numbers and names.

    Raises:
        InputError: it is none of these.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("is no text in UTF-8", file=path, remedy="write one class name a line") from None
    lines = text.splitlines()
    if len(lines) > _MOST_CLASSES:
        remedy = "give a text file with one class name a line"
        raise InputError(f"has {len(lines)} lines", file=path, remedy=remedy)
    is_yaml = any(line.startswith(("names:", "nc:")) for line in lines)
    if is_yaml or text.lstrip()[:1] in ("[", "{"):
        return _named_in(text, path)
    names = {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    fields = [name.replace(":", " ", 1).split(maxsplit=1) for name in names.values()]
    if len(fields) > 1 and all(len(each) > 1 for each in fields):  # "0 cup" is numbered, "0" may be a name
        numbers = [whole(each[0]) for each in fields]
        if numbers in (list(range(len(fields))), list(range(1, len(fields) + 1))):
            return {number: name for number, (_, name) in enumerate(fields, numbers[0] or 0)}
    return names


def _named_in(text: str, path: Path) -> dict[int, str]:
    try:
        # texts only, so that a class may be called "no"; JSON is YAML, but for tabs
        document = yaml.load(text.replace("\t", " "), yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = f"is no YAML or JSON ({str(error) or type(error).__name__})"
        raise InputError(reason, file=path, remedy="write one class name a line") from None
    found: Any = document.get("names", document) if isinstance(document, dict) else document
    if isinstance(found, dict) and isinstance(listed := found.get("categories"), list):
        found = {each.get("id"): each.get("name") for each in listed if isinstance(each, dict)}
    if isinstance(found, list):
        found = dict(enumerate(found))
    numbers = [whole(key) for key in found] if isinstance(found, dict) else [None]
    are_names = isinstance(found, dict) and all(isinstance(name, str) for name in found.values())
    if None in numbers or not are_names or len({*numbers}) < len(numbers):
        reason = f"has no list of names: {short(found)}"
        raise InputError(reason, file=path, remedy="write names: [FIRST, SECOND, ...]")
    return {number: name for number, name in zip(numbers, found.values(), strict=True) if number is not None}


def check_class_names(source: Source) -> None:
    """Raises InputError where the name of a category is no text that can be written."""
    for number, name in source.categories.items():
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            record = f"the name of category {number}"
            reason = f"has half of a pair of characters: {name!r}"
            raise InputError(reason, record=record, remedy="rename the category")


def write_class_names(folder: Path, names: Sequence[str]) -> None:
    """Writes names, first = class 0, as text and as YAML; none where there are none."""
    if names:
        lines = "".join(" ".join(name.split()) + "\n" for name in names)
        (folder / CLASSES_FILE).write_text(lines, encoding="utf-8")
        document = {"nc": len(names), "names": dict(enumerate(names))}
        text = yaml.safe_dump(document, allow_unicode=True, sort_keys=False)
        (folder / DATA_FILE).write_text(text, encoding="utf-8")
