"""JSON files of any length, plain or gzip: walked over once, then read and edited at any place.

A file of a million records is never parsed as a whole. The parsing itself is the standard library's.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

from transfiner_refine.errors import InputError, short
from transfiner_refine.formats.text_file import TextFile

MAX_VALUE = 64 << 20  # bytes of one value; bounds what is parsed at a time
_SPACE = re.compile(r"[ \t\n\r]*")
_AFTER_A_VALUE = ",:]} \t\n\r"

Entries = Iterator[tuple[Any, int, int]]
"""Value, first byte and byte after the last of each element of a list."""


class Ambiguous(dict[str, Any]):
    """A JSON object that has a key twice, so that readers differ in what they take it for; ``error`` says so."""

    error: InputError


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        found = ambiguous = Ambiguous(found)
        ambiguous.error = _twice(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return found


def _twice(key: str) -> InputError:
    return InputError(f"has the key {short(key)} twice", remedy="keep one of them")


_decode = json.JSONDecoder().raw_decode  # in a third of the time of the other
_decode_checked = json.JSONDecoder(object_pairs_hook=_object).decode
compact = json.JSONEncoder(separators=(",", ":")).encode  # ASCII without white space, lone surrogates escaped


def parse(text: str) -> Any:
    """The value that a text consists of, InputError where it is none; objects with repeated keys are ``Ambiguous``."""
    try:
        return _decode_checked(text)
    except json.JSONDecodeError as error:
        raise InputError(f"is not valid JSON: {error.msg} at character {error.pos + 1}") from None
    except (RecursionError, ValueError) as error:
        raise _invalid(error) from None


def parts(text: str, start: int = 0) -> Iterator[tuple[Any, Any, int, int]]:
    """Key, value, start and end (characters) of each member of the object at ``start`` of a valid JSON text.

    Of a list, its elements, with their positions as keys.
    """
    start = _after_space(text, start)
    at, position = _after_space(text, start + 1), 0
    while text[at] not in "]}":
        key: Any = position
        if text[start] == "{":
            key, at = _decode(text, at)
            at = _after_space(text, _after_space(text, at) + 1)  # over the colon
        value, end = _decode(text, at)
        yield key, value, at, end
        at, position = _after_space(text, end), position + 1
        if text[at] == ",":
            at = _after_space(text, at + 1)


def edited(text: str, edits: Iterable[tuple[int, int, str]]) -> str:
    """A text with some parts replaced: (start, end, new text), in rising order."""
    pieces, at = [], 0
    for start, end, new in edits:
        pieces += [text[at:start], new]
        at = end
    return "".join((*pieces, text[at:]))


def whole(value: object) -> int | None:
    """A whole number, however JSON has it: 600, 600.0 or "600"; None for all else, true and false among it."""
    if type(value) is float:
        return int(value) if value.is_integer() and abs(value) < 1 << 53 else None
    if type(value) is str:
        digits = value.removeprefix("-")
        return int(value) if digits.isascii() and digits.isdigit() and len(digits) < 19 else None
    return value if type(value) is int else None


class JsonValues:
    """Many values of one text, held as places in it: the first byte and the byte after the last, 16 bytes each."""

    def __init__(self, text: TextFile) -> None:
        self._text = text
        self._starts, self._ends = array("q"), array("q")

    def add(self, start: int, end: int) -> None:
        self._starts.append(start)
        self._ends.append(end)

    def __len__(self) -> int:
        return len(self._starts)

    def place(self, index: int) -> tuple[int, int]:
        return self._starts[index], self._ends[index]

    def text(self, index: int) -> str:
        """A value as it is in the file; InputError where that is not UTF-8."""
        try:
            return self._text.read(*self.place(index)).decode()
        except UnicodeDecodeError as error:
            raise _invalid(error) from None

    def value(self, index: int) -> Any:
        return parse(self.text(index))


def sections(text: TextFile) -> Iterator[tuple[str | None, Entries]]:
    """Key and elements of each list in the object that a file holds; a list alone has no key.

    What is not iterated over is checked all the same. Raises InputError where the text is not valid JSON, has a key
    twice, or a value of more than ``MAX_VALUE``.
    """
    scanner, seen = _Scanner(text), set[str | None]()
    is_object = scanner.peek() == "{"
    for _ in scanner.items("}") if is_object else (None,):
        key = None
        if is_object:
            if scanner.peek() != '"':
                raise scanner.error("Expecting property name enclosed in double quotes")
            key, _, _ = scanner.value()
            if key in seen:
                raise _twice(key).at(text.path)
            seen.add(key)
            scanner.skip(":", "Expecting ':' delimiter")
        if scanner.peek() == "[":
            entries = (scanner.value() for _ in scanner.items("]"))
            yield key, entries
            for _ in entries:
                pass
        else:
            scanner.value()
    if scanner.peek():
        raise scanner.error("Extra data")


def json_lines(text: TextFile) -> Iterator[tuple[Any, int, int, int]]:
    """Each line that is not blank: its value (None if it is not valid JSON), first byte, end, and number from 1.

    Raises InputError where the file cannot be read, or has a line of more than ``MAX_VALUE``.
    """
    rest, at, number = b"", 0, 0
    for piece in chain(text.pieces(), (b"\n",)):
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        if len(rest) > MAX_VALUE:
            reason = f"line {number + len(lines) + 1} is longer than {MAX_VALUE >> 20} MiB"
            raise InputError(reason, file=text.path)
        for line in lines:
            number += 1
            if line.strip():
                value = None
                with suppress(InputError, UnicodeDecodeError):  # said when the records are read
                    value = parse(line.decode())
                yield value, at, at + len(line.rstrip()), number
            at += len(line) + 1


class _Scanner:
    """Walks once over a JSON text, of which it holds a window.

    The window has a character for each byte (Latin-1): offsets agree, and all that JSON consists of is ASCII.
    """

    def __init__(self, text: TextFile) -> None:
        self._text, self._pieces = text, text.pieces()
        # the window starts at byte _first of the text and is done with up to _at
        self._window, self._at, self._first = "", 0, 0

    def peek(self) -> str:
        """The next character that is no white space, "" at the end of the text."""
        while True:
            self._at = _after_space(self._window, self._at)
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._more():
                return ""

    def skip(self, character: str, otherwise: str) -> None:
        if self.peek() != character:
            raise self.error(otherwise)
        self._at += 1

    def value(self) -> tuple[Any, int, int]:
        """The value that comes next, its first byte and the byte after its last."""
        self.peek()
        while True:
            try:
                value, end = _decode(self._window, self._at)
                # a number that the window cuts off would be taken for a shorter one
                if (end == len(self._window) or self._window[end] not in _AFTER_A_VALUE) and self._more():
                    continue
                text = self._window[self._at : end]
                if not text.isascii():
                    value, _ = _decode(text.encode("latin-1").decode(), 0)
                break
            except json.JSONDecodeError as error:
                if not self._more():
                    raise self.error(error.msg, error.pos) from None
            except UnicodeDecodeError as error:
                raise self._located(_invalid(error), self._at + error.start) from None
            except (RecursionError, ValueError) as error:
                raise self._located(_invalid(error), self._at) from None
        start, self._at = self._at, end
        return value, self._first + start, self._first + end

    def items(self, closing: str) -> Iterator[None]:
        """Stops before each item of the list or object whose bracket comes next; read it before going on."""
        self._at += 1
        if self.peek() != closing:
            yield
            while self.peek() != closing:
                self.skip(",", "Expecting ',' delimiter")
                yield
        self._at += 1

    def error(self, message: str, char: int | None = None) -> InputError:
        error = InputError(f"is not valid JSON: {message}", remedy="check that the file is complete")
        return self._located(error, self._at if char is None else char)

    def _located(self, error: InputError, char: int) -> InputError:
        return error.at(self._text.path, self._text.line_and_column(self._first + char))

    def _more(self) -> bool:
        """Lengthens the window by at least as much as is not done with; False at the end of the text."""
        if (rest := len(self._window) - self._at) > MAX_VALUE:
            reason = f"has a value of more than {MAX_VALUE >> 20} MiB"
            raise self._located(InputError(reason, remedy="check that it is what it should be"), self._at)
        found = [next(self._pieces, b"")]
        while found[-1] and (rest := rest - len(found[-1])) > 0:
            found.append(next(self._pieces, b""))
        if found[0]:
            self._window = self._window[self._at :] + b"".join(found).decode("latin-1")
            self._first, self._at = self._first + self._at, 0
        return bool(found[0])


def _invalid(error: Exception) -> InputError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    if isinstance(error, UnicodeDecodeError):
        reason = f"not UTF-8 ({error.reason})"
    return InputError(f"is not valid JSON: {reason}", remedy="write it again as UTF-8")


def _after_space(text: str, at: int) -> int:
    if at < len(text) and text[at] > " ":  # as nearly always
        return at
    found = _SPACE.match(text, at)
    assert found is not None  # it matches nothing, too
    return found.end()
