"""The errors this package raises on purpose, and how messages quote values and numbers."""

from __future__ import annotations

from pathlib import Path
from reprlib import Repr
from typing import TypeVar

_E = TypeVar("_E", bound="MaskRefineError")
_QUOTE = Repr()  # the beginning of a value, however long or deeply nested it is
_QUOTE.maxlist = _QUOTE.maxdict = 8


class MaskRefineError(Exception):
    """Base of every error this package raises on purpose; its text is one line, fit to show to a user.

    Args:
        reason: what is wrong, with the value that was found.
        file: the file it was found in.
        record: the record inside the file, as a person would look for it ("record 17", "annotation id 4").
        remedy: what to do about it.
    """

    def __init__(
        self,
        reason: str,
        *,
        file: str | Path | None = None,
        record: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.reason, self.record, self.remedy = reason, record, remedy
        self.file = None if file is None else str(file)
        where = ": ".join(part for part in (self.file, record) if part)
        text = f"{where}: {reason}" if where else reason
        super().__init__(_one_line(f"{text}; {remedy}" if remedy else text))

    def at(self: _E, file: str | Path | None = None, record: str | None = None) -> _E:
        """The same error, said of this file and record; what is not given stays."""
        where = self.file if file is None else file
        found = self.record if record is None else record
        return type(self)(self.reason, file=where, record=found, remedy=self.remedy)


def _one_line(text: str) -> str:
    """The text without line breaks, and without what a file could make a terminal do or stumble over."""
    letters = " ".join(text.split())
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in letters)


class InputError(MaskRefineError):
    """An image, a mask, a record or a results file that cannot be used as it is."""


class NoMaskError(InputError):
    """A record that has no mask, but a box perhaps."""


class OutputError(MaskRefineError):
    """A result that cannot be written where it was asked for."""


class CheckpointError(MaskRefineError):
    """A weights file that is missing, damaged, or of another kind than expected."""


class DeviceError(MaskRefineError):
    """A device or a precision that this machine does not have."""


def short(value: object) -> str:
    """The beginning of a value, as a message quotes it."""
    if value is None:
        return "missing"
    if isinstance(value, int) and value.bit_length() > 10_000:
        return f"a number of {value.bit_length()} bits"  # Python refuses to write it out
    text = _QUOTE.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 image`` or ``2 images``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
