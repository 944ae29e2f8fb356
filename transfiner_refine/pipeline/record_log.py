"""A file of records that is only ever appended to, so that it can break off anywhere and still be read.

Each record is its length and its CRC-32 (4 bytes each, little-endian), then its bytes. Reading stops at the
first record that is not whole; what stands there and behind it counts as never written.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from threading import Lock
from typing import Protocol

__all__ = ["LogFile", "RecordLog"]

_HEAD = struct.Struct("<II")  # length, CRC-32
_LONGEST = 1 << 30  # a longer length is damage
_MOST_WAITING = 1 << 16  # bytes held back
_LOOK = 4096  # bytes read at first; nearly every record is shorter


class LogFile(Protocol):
    """What a log needs of a file: one opened with ``buffering=0``, or an ``io.BytesIO``."""

    def read(self, size: int, /) -> bytes | None: ...
    def write(self, data: bytes | memoryview, /) -> int | None: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def truncate(self, size: int, /) -> int: ...


class RecordLog:
    """Records in a file, found again by the place that ``append`` gave. May be used by several threads."""

    def __init__(self, file: LogFile) -> None:
        """A log that begins where the file ends; ``scan`` first if there are records in it already."""
        self._file, self._lock = file, Lock()
        self._written = file.seek(0, os.SEEK_END)
        self._waiting = bytearray()  # a write for each record would cost more than the record

    @property
    def end(self) -> int:
        """The place at which the next record will stand; grows with every record."""
        return self._written + len(self._waiting)

    def append(self, record: bytes) -> int:
        """Takes a record (of at least one byte) and gives its place; ``flush`` brings it into the file.

        Raises:
            OSError: as for ``flush``, which is called when much is held back.
        """
        assert record  # an empty one would look like the zeros that a power cut leaves
        if len(self._waiting) > _MOST_WAITING:
            self.flush()
        with self._lock:
            place = self.end
            self._waiting += _HEAD.pack(len(record), zlib.crc32(record)) + record
        return place

    def flush(self) -> None:
        """Hands everything to the operating system, where it outlives this process.

        Raises:
            OSError: the disk refused. Part of the last record may have been written.
        """
        with self._lock:
            self._file.seek(self._written)
            while self._waiting:  # a full disk takes a part first and refuses afterwards
                count = self._file.write(bytes(self._waiting)) or 0
                self._written += count
                del self._waiting[:count]

    def read(self, place: int) -> bytes:
        """The record at a place that ``append`` or ``scan`` gave.

        Raises:
            OSError: it is not there any more, or damaged.
        """
        if place >= self._written:
            self.flush()
        with self._lock:
            record = self._read(place)
        if record is None:
            raise OSError(f"the record at byte {place} is damaged")
        return record

    def scan(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """All whole records from ``start`` on with their places; then cuts off whatever stands behind them."""
        place = start
        while (record := self._read(place)) is not None:
            yield place, record
            place += _HEAD.size + len(record)
        self._file.truncate(place)
        self._written = place

    def _read(self, place: int) -> bytes | None:
        """The record at a place, None if there is no whole one."""
        self._file.seek(place)
        found = self._file.read(_LOOK) or b""
        if len(found) < _HEAD.size:
            return None
        length, checksum = _HEAD.unpack_from(found)
        if not 0 < length <= _LONGEST:
            return None
        if _HEAD.size + length > len(found) == _LOOK:
            found += self._file.read(_HEAD.size + length - len(found)) or b""
        record = found[_HEAD.size : _HEAD.size + length]
        return record if len(record) == length and zlib.crc32(record) == checksum else None
