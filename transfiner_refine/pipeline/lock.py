"""A lock on an open file that the operating system lets go of when the process ends, however it ends."""

from __future__ import annotations

import errno
import os
import sys

__all__ = ["lock"]

_HELD_BY_ANOTHER = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_LOCKED_BYTE = 0x7FFF_0000  # Windows locks bytes and then lets nobody read them; no journal is that long


def lock(descriptor: int) -> bool:
    """Locks an open file to this process; False if another holds it.

    On file systems that know no locks (some network ones) the answer is True: better two runs unguarded than
    none possible.
    """
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            return error.errno not in _HELD_BY_ANOTHER
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD_BY_ANOTHER
    return True
