"""Text files, plain or gzip, read at any offset and written; told by their first bytes."""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import BinaryIO, cast
from weakref import finalize

from transfiner_refine.errors import InputError
from transfiner_refine.formats.folders import read_file, start_of
from transfiner_refine.output import atomic_binary_file

PIECE = 1 << 20  # bytes read at a time
MAX_UNPACKED = 4 << 30  # bytes of text that a gzip file may hold; LVIS results, the longest known, have 1 GB
_BYTE_ORDER_MARK, _GZIP = b"\xef\xbb\xbf", b"\x1f\x8b"


class TextFile:
    """The bytes of a UTF-8 file at any offset, without its byte order mark; gzip is told by the first bytes.

    It stays open, so that replacing it during a run does no harm. ``size`` is that of the text, in bytes.

    Raises:
        InputError: the file cannot be read, is UTF-16, or is a gzip file that is damaged or holds too much; later,
            that it has become shorter, or is another than it was.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, Lock()
        self._checksum: int | None = None
        read_file(path, most=1)  # a pipe would be waited for, a device read for ever
        try:
            self._watched: BinaryIO = path.open("rb", buffering=0)
            finalize(self, self._watched.close)
            self._file = _unpacked(path) if start_of(path, 2) == _GZIP else self._watched
            finalize(self, self._file.close)
            start = self._file.read(4)
            self._first = len(_BYTE_ORDER_MARK) if start.startswith(_BYTE_ORDER_MARK) else 0
            self._stamp = self._stamp_now()
            self.size = os.fstat(self._file.fileno()).st_size - self._first
        except OSError as error:
            raise _unreadable(path, error) from error
        if is_wide(start):
            raise InputError("is text in UTF-16 or UTF-32", file=path, remedy="save it as UTF-8")

    def read(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to ``end``, fewer only where the text ends."""
        wanted = min(end, self.size) - start
        try:
            with self._lock:
                self._file.seek(self._first + start)
                found = self._file.read(wanted) if wanted > 0 else b""
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if len(found) < wanted:
            raise self.changed()
        return found

    def pieces(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from ``start`` to ``end``, a piece at a time; the whole text is compared with what it was."""
        last, checksum = self.size if end is None else end, 0
        for at in range(start, last, PIECE):
            piece = self.read(at, min(at + PIECE, last))
            checksum = zlib.crc32(piece, checksum)
            yield piece
        if (start, last) == (0, self.size):
            if self._checksum not in (None, checksum):
                raise self.changed()
            self._checksum = checksum

    def line_and_column(self, offset: int) -> str:
        """Where a byte lies as a person would look for it: "line 3 column 17", counted from 1, in bytes."""
        line, column = 1, 1
        for piece in self.pieces(0, offset):
            line += piece.count(b"\n")
            column = len(piece) - piece.rfind(b"\n") if b"\n" in piece else column + len(piece)
        return f"line {line} column {column}"

    def check_unchanged(self) -> None:
        """Raises InputError where the file is another than when it was opened."""
        if self._stamp_now() != self._stamp:
            raise self.changed()
        for _ in self.pieces():
            pass

    def changed(self) -> InputError:
        reason, remedy = "has changed while it was read", "run again when it is whole"
        return InputError(reason, file=self.path, remedy=remedy)

    def _stamp_now(self) -> tuple[int, int]:
        state = os.fstat(self._watched.fileno())
        return state.st_size, state.st_mtime_ns


def look_into(path: Path) -> Iterator[bytes]:
    """The text of a file from its start, a piece at a time, unpacked; nothing after an error: reading will say it."""
    try:
        if path.is_file():
            with (
                cast(BinaryIO, gzip.open(path, "rb"))
                if start_of(path, 2) == _GZIP
                else path.open("rb") as file
            ):
                unpacked, piece = 0, file.read(PIECE).removeprefix(_BYTE_ORDER_MARK)
                while piece and unpacked <= MAX_UNPACKED:
                    yield piece
                    unpacked, piece = unpacked + len(piece), file.read(PIECE)
    except (OSError, EOFError, zlib.error):
        return


def is_wide(start: bytes) -> bool:
    """Whether a text that starts with these bytes is UTF-16 or UTF-32."""
    return start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start[:4]


@contextmanager
def text_output(output: Path) -> Iterator[BinaryIO]:
    """A file in the manner of ``atomic_binary_file``, packed if its name ends in ``.gz``."""
    with atomic_binary_file(output) as file:
        if output.suffix.lower() != ".gz":
            yield file
            return
        # neither a name nor the time goes into the file, so that it depends on the bytes alone
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
            yield cast(BinaryIO, packed)


def _unpacked(path: Path) -> BinaryIO:
    """The text of a gzip file in a file without a name, which is gone when it is closed."""
    with ExitStack() as on_error:
        target = on_error.enter_context(tempfile.TemporaryFile())
        try:
            with gzip.open(path, "rb") as packed:
                while piece := packed.read(PIECE):
                    if target.tell() + len(piece) > MAX_UNPACKED:
                        reason = f"holds more than {MAX_UNPACKED / 2**30:g} GiB of text"
                        raise InputError(reason, file=path, remedy="unpack it, if it is meant to be so long")
                    target.write(piece)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            reason = f"is a damaged gzip file ({error})"
            raise InputError(reason, file=path, remedy="check that it is complete") from error
        target.seek(0)
        on_error.pop_all()
    return cast(BinaryIO, target)


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot be read ({error.strerror or error})", file=path, remedy="check the path")
