"""Objects handed from one process to another: small ones through a pipe, arrays in shared memory.

A message is the number of its parts and their lengths, then the parts: the pickled object, and after it the
arrays' bytes as they lie in memory (pickle protocol 5, out of band). Large arrays go into shared memory where the
system has files without a name (Linux), and are used there without another copy. What has no name is gone when the
last process that has it open ends, however it ends.
"""

from __future__ import annotations

import mmap
import os
import pickle
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol
from weakref import finalize

__all__ = ["BUFFER", "Pipe", "Readable", "SharedMemory", "receive", "send", "widen", "write_shared"]

BUFFER = 1 << 16  # bytes read at a time
_NUMBER = struct.Struct("<q")
_PIPE_BYTES = 1 << 20  # what Linux grants anyone; 64 KiB is the default
_SHARED_FROM = 1 << 16  # bytes of an array; a smaller one goes through the pipe
_STRIDE = 1 << 31  # address space of a slot; only what is written to takes memory
_ALIGNED = 64  # bytes to which an array's length is rounded up, so that each begins where numbers may lie
_KEPT_BYTES = 1 << 27  # of slots that nobody uses; used again, their pages need not be cleared
_MAPPED = 256  # arrays in use at a time without a copy: each holds a file descriptor


class Pipe(Protocol):
    """The writing end of a pipe, unbuffered."""

    def fileno(self) -> int: ...
    def write(self, data: Any, /) -> int | None: ...


class Readable(Protocol):
    """The reading end."""

    def readinto(self, buffer: Any, /) -> int | None: ...


class SharedMemory:
    """Slots of a file without a name, each for the arrays of one message.

    Attributes:
        descriptor: the file's; None where the system has no such files.
    """

    def __init__(self) -> None:
        self.descriptor: int | None = None
        if sys.platform == "linux":
            with suppress(OSError):
                self.descriptor = os.memfd_create("transfiner-refine")
        self._free: list[int] = []
        self._bytes: dict[int, int] = {}  # by slot, as far as it has been written to
        self._idle_bytes = self._mapped = 0

    def close(self) -> None:
        """Lets go of the file; arrays that are still in use stay."""
        if self.descriptor is not None:
            os.close(self.descriptor)
        self.descriptor = None

    def take(self) -> int:
        """A slot that nobody uses."""
        slot = self._free.pop() if self._free else len(self._bytes)
        self._idle_bytes -= self._bytes.setdefault(slot, 0)
        return slot

    def free(self, slot: int) -> None:
        """Gives back a slot of which no array is in use."""
        length = self._bytes[slot]
        if self.descriptor is not None and self._idle_bytes + length > _KEPT_BYTES:
            with suppress(OSError), self._mapping(slot, length) as mapping:
                mapping.madvise(mmap.MADV_REMOVE)
            self._bytes[slot] = length = 0
        self._idle_bytes += length
        self._free.append(slot)

    def read(self, slot: int, length: int) -> memoryview:
        """The first bytes of a slot, which is free again when nothing refers to them any more."""
        assert self.descriptor is not None
        self._bytes[slot] = max(self._bytes[slot], length)
        if self._mapped < _MAPPED:
            with suppress(OSError):
                mapping = self._mapping(slot, length)
                self._mapped += 1
                finalize(mapping, self._unmapped, slot).atexit = False
                return memoryview(mapping)
        copy = bytearray(length)
        os.preadv(self.descriptor, [copy], slot * _STRIDE)
        self.free(slot)
        return memoryview(copy)

    def _mapping(self, slot: int, length: int) -> mmap.mmap:
        assert self.descriptor is not None
        return mmap.mmap(self.descriptor, length, offset=slot * _STRIDE)

    def _unmapped(self, slot: int) -> None:
        self._mapped -= 1
        self.free(slot)


def write_shared(descriptor: int, slot: int, parts: Sequence[memoryview]) -> bool:
    """Writes arrays one after the other into a slot; False where they do not fit."""
    if sum(_rounded(part.nbytes) for part in parts) > _STRIDE:
        return False
    start = slot * _STRIDE
    try:
        for part in parts:
            at, rest = start, part
            while rest.nbytes:
                count = os.pwrite(descriptor, rest, at)
                rest, at = rest[count:], at + count
            start += _rounded(part.nbytes)
    except OSError:  # a limit on the size of files or on memory
        return False
    return True


def _rounded(length: int) -> int:
    return -(-length // _ALIGNED) * _ALIGNED


def widen(pipe: Pipe) -> None:
    """Gives a pipe a larger buffer, where the system can."""
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def send(pipe: Pipe, message: object, shared: tuple[int, int] | None = None) -> None:
    """Writes a message.

    Args:
        pipe: where to.
        message: the object.
        shared: descriptor and slot of the shared memory for large arrays; None for the pipe alone.

    Raises:
        OSError: nobody reads any more.
        Exception: the message cannot be pickled; nothing has been written then.
    """
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(message, 5, buffer_callback=buffers.append)
    parts = [memoryview(pickled), *(buffer.raw() for buffer in buffers)]
    large = [part for part in parts[1:] if part.nbytes >= _SHARED_FROM]
    lengths = [part.nbytes for part in parts]
    if shared and large and write_shared(*shared, large):
        lengths = [-length if at and length >= _SHARED_FROM else length for at, length in enumerate(lengths)]
    head = b"".join(map(_NUMBER.pack, (len(parts), *lengths)))
    small = [part for part, length in zip(parts, lengths, strict=True) if length >= 0]
    if sum(part.nbytes for part in small) < _SHARED_FROM:
        small = [memoryview(b"".join((head, *small)))]  # one write in place of several
    else:
        small.insert(0, memoryview(head))
    for part in small:
        while part.nbytes:
            part = part[pipe.write(part) or 0 :]


def receive(pipe: Readable, memory: SharedMemory | None = None, slot: int | None = None) -> Any:
    """Reads a message; its slot is free when none of its arrays is in use any more.

    Raises:
        EOFError: the other side ended.
        Exception: what came cannot be unpickled here; the next message can be read all the same.
    """
    (count,) = _NUMBER.unpack(_filled(pipe, _NUMBER.size))
    head = _filled(pipe, count * _NUMBER.size)
    lengths = [length for (length,) in _NUMBER.iter_unpack(head)]
    large = [-length for length in lengths if length < 0]
    parts: list[bytearray | memoryview] = [_filled(pipe, max(length, 0)) for length in lengths]
    if memory is not None and slot is not None:
        if large:
            shared = memory.read(slot, sum(map(_rounded, large[:-1])) + large[-1])
            for at, length in enumerate(lengths):
                if length < 0:
                    parts[at], shared = shared[:-length], shared[_rounded(-length) :]
        else:
            memory.free(slot)
    return pickle.loads(parts[0], buffers=parts[1:])


def _filled(pipe: Readable, length: int) -> bytearray:
    """The next bytes of the pipe."""
    buffer = bytearray(length)
    rest = memoryview(buffer)
    while rest:
        read = pipe.readinto(rest)
        if not read:
            raise EOFError
        rest = rest[read:]
    return buffer
