"""Which kind of COCO file a file is, from its first bytes."""

from __future__ import annotations

import re
from pathlib import Path

from transfiner_refine.errors import InputError
from transfiner_refine.formats.coco.photos import image_id_of
from transfiner_refine.formats.json_scan import parse
from transfiner_refine.formats.text_file import look_into

__all__ = ["is_annotations", "is_lines", "is_panoptic", "is_results"]

_LONGEST_FIRST_LINE = 1 << 20  # bytes; a longer first line is hardly one result of many
_LOOK = 1 << 16  # bytes of annotations in which one of them says what they are
_ANNOTATIONS = re.compile(rb'"annotations"\s*:\s*\[')


def is_results(path: Path) -> bool:
    """A JSON list."""
    return _start(path).startswith(b"[")


def is_lines(path: Path) -> bool:
    """One JSON object a line, the first of which has an ``image_id``."""
    line, _, _ = _start(path).partition(b"\n")
    if not line.startswith(b"{") or len(line) > _LONGEST_FIRST_LINE:
        return False
    try:
        return image_id_of(parse(line.decode()), "image_id") is not None
    except (InputError, UnicodeDecodeError):
        return False


def is_panoptic(path: Path) -> bool:
    """A JSON object with annotations that have ``segments_info``."""
    if not _start(path).startswith(b"{"):
        return False
    tail = b""
    pieces = look_into(path)
    for piece in pieces:
        tail += piece
        if found := _ANNOTATIONS.search(tail):
            start = tail[found.end() :] + (next(pieces, b"") if len(tail) - found.end() < _LOOK else b"")
            return b'"segments_info"' in start[:_LOOK]
        tail = tail[-_LOOK:]
    return False


def is_annotations(path: Path) -> bool:
    """Any other JSON object; reading it says what is missing."""
    return _start(path).startswith(b"{")


def _start(path: Path) -> bytes:
    """The first bytes of the text that are no white space."""
    for piece in look_into(path):
        if start := piece.lstrip():
            return start
    return b""
