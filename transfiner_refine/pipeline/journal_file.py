"""The file of a journal: records that are only appended, each with its checksum, locked to one process.

After a title, each line is the CRC-32 of a record and the record: a letter for its kind and JSON. Records count up to
the last commit: reading the file cuts off what stands behind it or is damaged.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from transfiner_refine.errors import OutputError
from transfiner_refine.output import atomic_binary_file

COMMIT = "C"  # kind of the record up to which the others count

_TITLE = b"transfiner-refine journal 3\n"
_HELD_BACK = 1 << 16  # bytes; a write for each record would cost more than the record
_LONGEST_LAST = 1 << 20  # bytes in which the last record lies
_HELD_BY_ANOTHER = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_LOCKED_BYTE = 0x7FFF_0000  # Windows locks bytes and then lets nobody read them; no journal is that long


def journal_path(output: Path) -> Path:
    """Where the journal of a run lies."""
    return output.with_name(f".{output.name}.journal")


class JournalFile:
    """The records of a run, in memory without an output. One thread may append while another reads.

    Attributes:
        path: the file, locked to this process until ``close``; None in memory.
        committed: its length at the last commit, bytes.

    Raises:
        OutputError: from every method, where the disk refuses; at first also where another run has the file open.
    """

    def __init__(self, output: Path | None) -> None:
        self.path = None if output is None else journal_path(output)
        self.committed = self._end = 0
        self._is_at_end, self._lock = False, Lock()  # the file is where the next record belongs
        self._file: BinaryIO = io.BytesIO()
        if output is not None:
            with self._refusals():
                output.parent.mkdir(parents=True, exist_ok=True)
                self._file = _locked(journal_path(output), output)

    def restart(self) -> None:
        """Empties the file but for its title."""
        with self._refusals():
            self._file.truncate(0)
            self._file.seek(0)
            self._end = self._file.write(_TITLE)

    def append(self, kind: str, text: str) -> int:
        """Adds a record; returns its place."""
        return self.append_line(_line(kind, text))

    def append_line(self, line: bytes) -> int:
        """Adds the line of another journal; returns its place."""
        with self._refusals(), self._lock:
            if not self._is_at_end:
                self._file.seek(self._end)
            self._is_at_end = True
            place, self._end = self._end, self._end + len(line)
            self._file.write(line)
        return place

    def commit(self, text: str) -> None:
        """Makes all records outlive this process."""
        self.append(COMMIT, text)
        with self._refusals(), self._lock:
            self._file.flush()
            self.committed = self._end

    def read(self, place: int) -> Any:
        """What stands at a place."""
        with self._refusals(), self._lock:
            self._is_at_end = False
            self._file.seek(place)
            body = _body(self._file.readline())
        if body is None:
            reason = f"is damaged at byte {place}, though it was sound before"
            raise OutputError(reason, file=self.path, remedy="repeat the command with --resume")
        return json.loads(body[1:])

    def recover(self) -> Iterator[tuple[int, str, Any]]:
        """Place, kind and content of all records up to the last commit, and cuts off the rest.

        Raises:
            ValueError, RecursionError: it is some other file.
        """
        with self._refusals():
            place, end = len(_TITLE), 0
            waiting: list[tuple[int, str, Any]] = []
            for line, kind, record in sound_lines(self._file):
                waiting.append((place, kind, record))
                place += len(line)
                if kind == COMMIT:
                    yield from waiting
                    end = place
                    waiting.clear()
            self._file.truncate(end)
        self.committed = self._end = end

    def copy_to(self, output: Path, kind: str, text: str) -> None:
        """Writes what is committed, and one record more, at another place."""
        with atomic_binary_file(output) as file, self._refusals(), self._lock:
            self._is_at_end = False
            self._file.seek(0)
            for at in range(0, self.committed, _HELD_BACK):
                file.write(self._file.read(min(_HELD_BACK, self.committed - at)))
            file.write(_line(kind, text))

    def records(self) -> bytes:
        """The lines of a journal in memory."""
        assert isinstance(self._file, io.BytesIO)
        return self._file.getvalue()

    def close(self, *, remove: bool = False) -> None:
        """Lets go of the file, and removes it if asked."""
        # a full disk, of which there is word already; or the folder was closed meanwhile
        with suppress(OSError):
            if os.name == "nt":  # an open file cannot be removed there
                self._file.close()
            if self.path is not None and remove:
                self.path.unlink()  # before another run can lock it
        with suppress(OSError):
            self._file.close()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"cannot be written ({error.strerror or error})",
                file=self.path,
                remedy="check the space on the disk and the rights on the folder",
            ) from error


def sound_lines(file: BinaryIO) -> Iterator[tuple[bytes, str, Any]]:
    """Line, kind and content of each record of a journal up to the first that is damaged.

    Raises:
        ValueError, RecursionError: it is some other file.
    """
    title = file.read(len(_TITLE))
    if not _TITLE.startswith(title):
        raise ValueError(title)
    for line in file if title == _TITLE else ():
        if (body := _body(line)) is None:
            return
        yield line, chr(body[0]), json.loads(body[1:])


def last_record(file: BinaryIO) -> tuple[str, Any]:
    """Kind and content of the last record; raises ValueError where it is damaged."""
    file.seek(-min(_LONGEST_LAST, file.seek(0, os.SEEK_END)), os.SEEK_END)
    if (body := _body(file.read().splitlines(keepends=True)[-1])) is None:
        raise ValueError
    return chr(body[0]), json.loads(body[1:])


def _line(kind: str, text: str) -> bytes:
    body = f"{kind}{text}".encode("ascii")
    return b"%08x%b\n" % (zlib.crc32(body), body)


def _body(line: bytes) -> bytes | None:
    """The record of a line, None if it is damaged."""
    body = line[8:-1]
    return body if body and line == b"%08x%b\n" % (zlib.crc32(body), body) else None


def _locked(path: Path, output: Path) -> BinaryIO:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=_HELD_BACK)
        if not _lock(file.fileno()):
            file.close()
            raise OutputError(
                "another run is writing it", file=output, remedy="wait for that one, or give another --output"
            )
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                return file
        file.close()  # the run that held it has just ended and removed the file


def _lock(descriptor: int) -> bool:
    """Locks an open file to this process, until it ends in whatever way; False if another holds it.

    On file systems that know no locks (some network ones) the answer is True: better two runs unguarded than
    none possible.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD_BY_ANOTHER
    return True
