"""What the processes of a run send each other: pickled messages through sockets, large arrays in shared memory."""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from weakref import finalize

_HEAD = struct.Struct("<q")  # bytes of a message
_SHARED_FROM = 1 << 16  # bytes of an array; a smaller one is pickled with the rest
_ALIGNED = 64  # bytes to which an array's length is rounded up, so that each begins where numbers may lie
_MOST_MAPPED = 128  # answers in use at a time without a copy: each holds two file descriptors
_KEPT_BYTES = 1 << 27  # of files that nobody uses; used again, their pages need not be cleared


class SharedFiles:
    """Files without a name in memory, one for each answer, used again when nobody uses its arrays any more."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._mapped, self._is_open = 0, True

    def take(self) -> int | None:
        """A file that nobody uses; None where the system has none."""
        if self._free:
            return self._free.pop()
        if sys.platform == "linux":
            with suppress(OSError):
                return os.memfd_create("transfiner-refine")
        return None

    def read(self, file: int | None, lengths: Sequence[int]) -> list[memoryview]:
        """The arrays that lie in a file, which is free again when nothing refers to them any more."""
        arrays: list[memoryview] = []
        if file is not None and not lengths:
            self.release(file)
        if file is not None and lengths:
            whole = self._mapping(file, sum(length + -length % _ALIGNED for length in lengths))
            for length in lengths:
                arrays.append(whole[:length])
                whole = whole[length + -length % _ALIGNED :]
        return arrays

    def _mapping(self, file: int, length: int) -> memoryview:
        if self._mapped < _MOST_MAPPED:
            with suppress(OSError):
                mapping = mmap.mmap(file, length)
                self._mapped += 1
                finalize(mapping, self.release, file, 1).atexit = False
                return memoryview(mapping)
        copy = bytearray(length)
        os.preadv(file, [copy], 0)
        self.release(file)
        return memoryview(copy)

    def release(self, file: int, mapped: int = 0) -> None:
        """Takes a file back whose arrays nobody uses."""
        self._mapped -= mapped
        size = sum(os.fstat(each).st_size for each in (file, *self._free))
        if self._is_open and size <= _KEPT_BYTES:
            self._free.append(file)
        else:
            os.close(file)

    def close(self) -> None:
        """Lets go of the files; arrays that are still in use stay."""
        self._is_open = False
        while self._free:
            os.close(self._free.pop())


def dumped(answer: object, file: int | None) -> bytes:
    """An answer as it is sent: its pickle, and the lengths of the large arrays that are written into the file."""
    arrays: list[memoryview] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes >= _SHARED_FROM:
            arrays.append(buffer.raw())
        return buffer.raw().nbytes < _SHARED_FROM

    if file is not None:
        pickled = pickle.dumps(answer, 5, buffer_callback=is_small)
        parts = [part for array in arrays for part in (array, bytes(-array.nbytes % _ALIGNED))]
        end, at = sum(map(len, parts)), 0
        with suppress(OSError):  # a limit on the size of files or on memory
            for part in parts:
                at += os.pwrite(file, part, at)
        if at == end:
            return pickle.dumps((pickled, [array.nbytes for array in arrays]))
    return pickle.dumps((pickle.dumps(answer, 5), []))


def send(to: socket.socket, message: bytes, file: int | None = None) -> None:
    """Writes a message, with the descriptor of a file."""
    whole = _HEAD.pack(len(message)) + message
    sent = 0 if file is None else socket.send_fds(to, [whole], [file])
    to.sendall(memoryview(whole)[sent:])


def receive(source: socket.socket) -> tuple[bytearray, int | None]:
    """The next message and the descriptor that came with it; EOFError where the other side has ended."""
    head, descriptors, _, _ = socket.recv_fds(source, _HEAD.size, 1, socket.MSG_WAITALL)
    if len(head) < _HEAD.size:
        raise EOFError
    message = bytearray(*_HEAD.unpack(head))
    rest = memoryview(message)
    while rest:
        read = source.recv_into(rest, flags=socket.MSG_WAITALL)
        if not read:
            raise EOFError
        rest = rest[read:]
    return message, descriptors[0] if descriptors else None
