"""Text files too long to hold in memory, plain or gzip, read piece by piece at any place."""

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
from transfiner_refine.output import atomic_binary_file

__all__ = ["MAX_UNPACKED", "TextFile", "is_gzip", "look_into", "text_output"]

MAX_UNPACKED = 4 << 30  # bytes of text that a gzip file may hold; LVIS results, the longest known, have 1 GB
PIECE = 1 << 20  # bytes read at a time
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class TextFile:
    """The bytes of a text file at any offset; a byte order mark is not among them.

    A gzip file, told by its first bytes, is unpacked into a temporary file without a name.

    Attributes:
        path: the file.
        size: bytes of text.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file and keeps it open, so that replacing it during a run does no harm.

        Raises:
            InputError: it cannot be read, or is a gzip file that is damaged or holds more than ``MAX_UNPACKED``.
        """
        self.path = path
        self._lock = Lock()
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for, a device read for ever
                raise InputError("is no file", file=path, remedy="give a plain file")
            self._watched = path.open("rb")
            finalize(self, self._watched.close)
            self._file = _unpacked(path) if is_gzip(path) else self._watched
            finalize(self, self._file.close)
            start = self._file.read(len(_BYTE_ORDER_MARK))
            self._first = len(_BYTE_ORDER_MARK) if start == _BYTE_ORDER_MARK else 0
            self._stamp = self._stamp_now()
            self.size = os.fstat(self._file.fileno()).st_size - self._first
        except OSError as error:
            raise _unreadable(path, error) from error

    def read(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to ``end``, fewer only where the text ends.

        Raises:
            InputError: the disk refused, or the file has become shorter.
        """
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
        """The bytes from ``start`` to ``end`` (None: of the text), a piece at a time.

        Raises:
            InputError: as for ``read``.
        """
        end = self.size if end is None else end
        for at in range(start, end, PIECE):
            yield self.read(at, min(at + PIECE, end))

    def line_and_column(self, offset: int) -> str:
        """Where a byte lies as a person would look for it: "line 3 column 17", counted from 1, in bytes."""
        line, line_start, at = 1, 0, 0
        for piece in self.pieces(0, offset):
            if (count := piece.count(b"\n")) > 0:
                line, line_start = line + count, at + piece.rindex(b"\n") + 1
            at += len(piece)
        return f"line {line} column {offset - line_start + 1}"

    def check_unchanged(self) -> None:
        """Raises InputError where the file has been written to since it was opened."""
        if self._stamp_now() != self._stamp:
            raise self.changed()

    def changed(self) -> InputError:
        """What to say where offsets do not fit the file any more."""
        return InputError(
            "has changed while it was read", file=self.path, remedy="run again when it is whole"
        )

    def _stamp_now(self) -> tuple[int, int]:
        state = os.fstat(self._watched.fileno())
        return state.st_size, state.st_mtime_ns


def is_gzip(path: Path) -> bool:
    """Whether a file starts as gzip files do; False where it cannot be read."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_GZIP)) == _GZIP
    except OSError:
        return False


def look_into(path: Path) -> Iterator[bytes]:
    """The text of a file from its start, a piece at a time, unpacked if it is gzip; nothing after an error.

    For recognising formats, which never fails: reading the file later says what is wrong with it.
    """
    try:
        if not path.is_file():
            return
        with _open(path) as file:
            piece = file.read(PIECE).removeprefix(_BYTE_ORDER_MARK)
            unpacked = 0
            while piece and unpacked <= MAX_UNPACKED:
                unpacked += len(piece)
                yield piece
                piece = file.read(PIECE)
    except (OSError, EOFError, zlib.error):
        return


@contextmanager
def text_output(output: Path) -> Iterator[BinaryIO]:
    """A file for UTF-8 bytes in the manner of ``atomic_file``, packed if its name ends in ``.gz``.

    Packing depends on the bytes alone: neither a name nor the time goes into the file.

    Raises:
        OutputError: the disk refused (full, read-only, no permission).
    """
    with atomic_binary_file(output) as file:
        if output.suffix.lower() != ".gz":
            yield file
            return
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
            yield cast(BinaryIO, packed)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if is_gzip(path) else path.open("rb")


def _unpacked(path: Path) -> BinaryIO:
    """The text of a gzip file in a file without a name, which is gone when it is closed."""
    with ExitStack() as on_error:
        target = on_error.enter_context(tempfile.TemporaryFile())
        try:
            with gzip.open(path, "rb") as packed:
                total = 0
                while piece := packed.read(PIECE):
                    total += len(piece)
                    if total > MAX_UNPACKED:
                        raise InputError(
                            f"holds more than {MAX_UNPACKED / 2**30:g} GiB of text",
                            file=path,
                            remedy="unpack it and give the plain file, if it is meant to be so long",
                        )
                    target.write(piece)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"is a damaged gzip file ({error})", file=path, remedy="check that it is complete"
            ) from error
        target.flush()
        target.seek(0)
        on_error.pop_all()
    return cast(BinaryIO, target)


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot be read ({error.strerror or error})", file=path, remedy="check the path")
