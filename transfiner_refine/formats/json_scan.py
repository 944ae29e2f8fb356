"""Where things are in a JSON text: the parts of a long file by byte offsets, and of one record by characters.

A file of a million records is walked over once, a window at a time, and never parsed as a whole. The parsing
itself is the standard library's.
"""

from __future__ import annotations

import codecs
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

from transfiner_refine.errors import InputError
from transfiner_refine.formats.text_file import TextFile

__all__ = ["MAX_VALUE", "Ambiguous", "JsonValues", "Scanner", "elements", "members", "parse", "short"]

MAX_VALUE = 64 << 20  # characters of one record; keeps what is parsed at a time within bounds
_SPACE = re.compile(r"[ \t\n\r]*")
_LONGEST_QUOTE = 60  # characters
_AFTER_A_VALUE = ",:]} \t\n\r"


class Ambiguous(dict[str, Any]):
    """A JSON object that has a key twice, so that readers differ in what they take it for.

    Attributes:
        key: the first of these keys.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.key = next(key for key in counts if counts[key] > 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else Ambiguous(pairs)


_parse_at = json.JSONDecoder(object_pairs_hook=_object).raw_decode
_pass_at = json.JSONDecoder().raw_decode  # in a third of the time, where only the end is asked for


def parse(text: str) -> Any:
    """The value that a text consists of; objects with repeated keys come as ``Ambiguous``.

    Raises:
        InputError: it is not valid JSON; the reason says so and why.
    """
    try:
        value, end = _parse_at(text, _after_space(text, 0))
        if _after_space(text, end) != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as error:
        raise InputError(f"is not valid JSON: {error.msg} at character {error.pos + 1}") from None
    except (RecursionError, ValueError) as error:
        raise _invalid(error) from None
    return value


def members(text: str, start: int = 0) -> Iterator[tuple[str, int, int]]:
    """Key, start and end of each value of the object at ``start`` of a valid JSON text, in characters."""
    at = _after_space(text, _after_space(text, start) + 1)
    while text[at] != "}":
        key, at = _pass_at(text, at)
        at = _after_space(text, _after_space(text, at) + 1)  # over the colon
        _, end = _pass_at(text, at)
        yield key, at, end
        at = _after_comma(text, end)


def elements(text: str, start: int = 0) -> Iterator[tuple[int, int]]:
    """Start and end of each element of the list at ``start`` of a valid JSON text, in characters."""
    at = _after_space(text, _after_space(text, start) + 1)
    while text[at] != "]":
        _, end = _pass_at(text, at)
        yield at, end
        at = _after_comma(text, end)


class JsonValues:
    """Many values of one text, held as places in it: 16 bytes each, parsed when asked for."""

    def __init__(self, text: TextFile) -> None:
        self._text = text
        self._starts, self._ends = array("q"), array("q")

    def add(self, start: int, end: int) -> None:
        """Takes one more value, at these bytes of the text."""
        self._starts.append(start)
        self._ends.append(end)

    def __len__(self) -> int:
        return len(self._starts)

    def place(self, index: int) -> tuple[int, int]:
        """Its first byte and the byte after its last."""
        return self._starts[index], self._ends[index]

    def text(self, index: int) -> str:
        """A value as it is in the file.

        Raises:
            InputError: the file cannot be read any more, or is not UTF-8 here.
        """
        try:
            return self._text.read(*self.place(index)).decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"is not valid JSON: not UTF-8 ({error.reason})", remedy="write it again"
            ) from None

    def value(self, index: int) -> Any:
        """A value, parsed.

        Raises:
            InputError: as for ``text``, or it is not valid JSON.
        """
        return parse(self.text(index))


class Scanner:
    """Walks once over a JSON text of any length.

    Attributes:
        start: byte offset of the value read last.
        end: byte offset of the byte after it.
    """

    def __init__(self, text: TextFile) -> None:
        self._text, self._pieces = text, text.pieces()
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._taken, self._finished = 0, False  # bytes of the pieces so far; no piece is left
        self._window, self._at = "", 0  # characters that are decoded, and how many of them are done with
        self._byte, self._char = 0, 0  # a byte offset and the character of the window that lies there
        self.start = self.end = 0

    def peek(self) -> str:
        """The next character that is no white space, "" at the end of the text.

        Raises:
            InputError: the text cannot be read or is not UTF-8.
        """
        while True:
            self._at = _after_space(self._window, self._at)
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._more():
                return ""

    def skip(self, character: str, otherwise: str) -> None:
        """Goes over one character.

        Raises:
            InputError: another one comes; ``otherwise`` says what was expected, as the json module does.
        """
        if self.peek() != character:
            raise self._error(otherwise, self._at)
        self._at += 1

    def value(self) -> Any:
        """The value that comes next; ``start`` and ``end`` are set to where it lies.

        Raises:
            InputError: it is not valid JSON, or longer than ``MAX_VALUE``.
        """
        self.peek()
        while True:
            try:
                value, end = _parse_at(self._window, self._at)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise self._error(error.msg, error.pos) from None
                continue
            except (RecursionError, ValueError) as error:
                raise self._at_fault(_invalid(error), self._at) from None
            # a number that the window cuts off would be taken for a shorter one
            if (end < len(self._window) and self._window[end] in _AFTER_A_VALUE) or not self._more():
                self.start, self.end = self._offset(self._at), self._offset(end)
                self._at = end
                return value

    def elements(self) -> Iterator[Any]:
        """The values of the list that comes next, one by one, with ``start`` and ``end`` set for each.

        Raises:
            InputError: as for ``value``.
        """
        self.skip("[", "Expecting '['")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self.peek() == "]":
                self._at += 1
                return
            self.skip(",", "Expecting ',' delimiter")

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next; read or walk over its value before asking for the next key.

        Raises:
            InputError: as for ``value``, or a key comes twice.
        """
        self.skip("{", "Expecting '{'")
        seen = set[str]()
        if self.peek() == "}":
            self._at += 1
            return
        while True:
            if self.peek() != '"':
                raise self._error("Expecting property name enclosed in double quotes", self._at)
            key = self.value()
            if key in seen:
                raise InputError(
                    f"has the key {short(key)} twice", file=self._text.path, remedy="keep one of them"
                )
            seen.add(key)
            self.skip(":", "Expecting ':' delimiter")
            yield key
            if self.peek() == "}":
                self._at += 1
                return
            self.skip(",", "Expecting ',' delimiter")

    def finish(self) -> None:
        """Raises InputError where anything but white space is left."""
        if self.peek():
            raise self._error("Extra data", self._at)

    def _more(self) -> bool:
        """Lengthens the window, by at least as much as is not done with; False at the end of the text."""
        if self._finished:
            return False
        if len(self._window) - self._at > MAX_VALUE:
            reason = f"has a value of more than {MAX_VALUE >> 20} MiB"
            raise self._at_fault(InputError(reason, remedy="check that it is what it should be"), self._at)
        self._byte, self._char = self._offset(self._at), 0
        parts = [self._window[self._at :]]
        missing = max(len(parts[0]), 1)
        while missing > 0 and not self._finished:
            piece = next(self._pieces, b"")
            self._finished = not piece
            self._taken += len(piece)
            missing -= len(piece)
            try:
                parts.append(self._decode.decode(piece, final=self._finished))
            except UnicodeDecodeError as error:
                raise InputError(
                    f"is not valid JSON: not UTF-8 ({error.reason})",
                    file=self._text.path,
                    record=self._text.line_and_column(self._taken - len(error.object) + error.start),
                    remedy="write it again as UTF-8",
                ) from None
        self._window, self._at = "".join(parts), 0
        return True

    def _offset(self, char: int) -> int:
        """The byte offset of a character of the window; characters are asked for in rising order."""
        between = self._window[self._char : char]
        self._byte += len(between) if between.isascii() else len(between.encode())
        self._char = char
        return self._byte

    def _error(self, message: str, char: int) -> InputError:
        error = InputError(f"is not valid JSON: {message}", remedy="check that the file is complete")
        return self._at_fault(error, char)

    def _at_fault(self, error: InputError, char: int) -> InputError:
        where = self._text.line_and_column(self._offset(char))
        return InputError(error.reason, file=self._text.path, record=where, remedy=error.remedy)


def short(value: object) -> str:
    """A value as a message quotes it."""
    text = repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[: _LONGEST_QUOTE - 3]}..."


def _after_space(text: str, at: int) -> int:
    if at < len(text) and text[at] > " ":  # as nearly always
        return at
    found = _SPACE.match(text, at)
    assert found is not None  # it matches nothing, too
    return found.end()


def _after_comma(text: str, at: int) -> int:
    at = _after_space(text, at)
    return _after_space(text, at + 1) if text[at] == "," else at


def _invalid(error: Exception) -> InputError:
    if isinstance(error, RecursionError):
        return InputError("is not valid JSON: nested too deeply", remedy="write it again")
    return InputError(
        f"is not valid JSON: {error}", remedy="write it again"
    )  # a number of thousands of digits
