"""Images prepared ahead in processes of their own, so that a crashing decoder costs one image and no core idles.

``concurrent.futures.ProcessPoolExecutor`` is no choice here: it runs the main program of a script again in each
process, leaves them behind when the run is killed, and does not tell which image has crashed one. A worker is a
Python with this module at the other end of a socket. Requests and answers are pickled; the large arrays of an answer
lie in a file without a name in memory (Linux), which goes along with the request as a descriptor, and are used here
without a copy. It is gone with the last process that has it open, however that ends.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from weakref import finalize

from transfiner_refine.errors import InputError
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.pipeline.prepare import PreparedImage, Selection, failed, no_memory, prepare
from transfiner_refine.refine.engine import usable_cores

_THREADS = min(4, usable_cores())  # without workers; more would take the cores from the network
_SECONDS_TO_END = 5
# glibc otherwise gives the memory of each image back and has the kernel clear it for the next one
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "67108864"}
_ATTEMPTS = 2  # an image is not blamed for a worker that was killed by chance
_READY = "ready"  # a worker's first answer
_HEAD = struct.Struct("<q")  # bytes of a message
_SHARED_FROM = 1 << 16  # bytes of an array; a smaller one is pickled with the rest
_ALIGNED = 64  # bytes to which an array's length is rounded up, so that each begins where numbers may lie
_MOST_MAPPED = 128  # answers in use at a time without a copy: each holds two file descriptors
_KEPT_BYTES = 1 << 27  # of files that nobody uses; used again, their pages need not be cleared


class WorkerPool:
    """Prepares images ahead, in ``workers`` processes, or with 0 in a few threads of this process.

    Every image goes at once to the worker that has the fewest, which answers in the same order. Answers are read by
    who asks for a result, so that no thread waits for Python's lock. May be used by one thread; ``size`` is how many
    images are prepared at the same time.

    A worker that dies is replaced, and the image that it was at is tried once more; if that kills the next one
    too, the image is at fault. Where processes cannot be started at all, threads do the work.
    """

    def __init__(self, workers: int, selection: Selection, max_image_pixels: int) -> None:
        # Python inside another program would start that one anew
        can_start = sys.executable and not hasattr(sys, "frozen") and hasattr(socket, "send_fds")
        self._most = workers if can_start else 0
        self._how, self.size = (selection, max_image_pixels), self._most or _THREADS
        self._workers: list[_Worker] = []
        self._files = _SharedFiles()
        self._threads = ThreadPoolExecutor(_THREADS, "transfiner-decode")

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()  # it holds nothing that could be lost
        for worker in self._workers:
            worker.end(0)
            for pending in worker.asked:
                self._fail(pending, None)
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._files.close()

    @property
    def processes(self) -> list[int]:
        """Numbers of the worker processes that run."""
        return [worker.process.pid for worker in self._workers]

    def submit(self, image: ImageRecord) -> Pending:
        """Starts on an image as soon as a worker has time for it."""
        pending = Pending(self, image)
        self._assign(pending)
        return pending

    def _assign(self, pending: Pending) -> None:
        worker = min(self._workers, key=lambda each: len(each.asked), default=None)
        try:
            if len(self._workers) < self._most and (worker is None or worker.asked):
                worker = _Worker(self._how)
                self._workers.append(worker)
        except OSError:
            self._most = len(self._workers)
        if worker is None:
            self._fail(pending, None)
            pending.future = self._threads.submit(prepare, pending.image, *self._how)
            return
        try:
            message = pickle.dumps(pending.image, 5)
        except Exception:  # pickle raises about anything; then it is prepared where it is
            pending.prepared = prepare(pending.image, *self._how)
            return
        pending.worker = worker
        worker.asked.append(pending)
        try:
            if pending.file is None:
                pending.file = self._files.take()
            _send(worker.socket, message, pending.file)
        except OSError:
            self._replace(worker)

    def _advance(self, worker: _Worker) -> None:
        """Reads a worker's next answer."""
        try:
            answer, lengths = pickle.loads(_receive(worker.socket)[0])
            if answer == _READY:
                worker.is_ready = True
                return
            answer = pickle.loads(answer, buffers=self._files.read(worker.asked[0].file, lengths))
        except MemoryError:  # in the middle of an answer, of which nobody will read the rest
            pending = worker.asked.popleft()
            self._fail(pending, no_memory(pending.image))
            self._replace(worker, is_to_blame=False)
        except (OSError, EOFError):
            self._replace(worker)
        else:
            pending = worker.asked.popleft()
            if isinstance(answer, OSError):  # the system's fault, not the image's
                raise answer
            # text: the image could not be unpickled there, so it is prepared here
            is_prepared = isinstance(answer, PreparedImage)
            pending.prepared = answer if is_prepared else prepare(pending.image, *self._how)

    def _replace(self, worker: _Worker, *, is_to_blame: bool = True) -> None:
        """Gives the work of a worker that has ended to others; the image that it was at may be to blame."""
        self._workers.remove(worker)
        ending = worker.end(_SECONDS_TO_END if is_to_blame else 0)
        left = list(worker.asked)
        if not worker.is_ready:  # processes cannot be started here
            self._most = len(self._workers)
        elif left and is_to_blame:
            first = left[0]
            first.attempts += 1
            if first.attempts == _ATTEMPTS:
                error = InputError(
                    f"decoding it crashed the decoder process ({ending})",
                    file=first.image.path,
                    remedy="replace the file, or leave out its records",
                )
                self._fail(left.pop(0), error)
        for pending in left:
            self._assign(pending)

    def _fail(self, pending: Pending, error: InputError | None) -> None:
        """Notes that no worker will answer."""
        if error is not None:
            pending.prepared = failed(pending.image, error)
        if pending.file is not None:
            self._files.release(pending.file)
            pending.file = None


@dataclass
class Pending:
    """An image that is being prepared, by a worker or in a thread of this process."""

    _pool: WorkerPool
    image: ImageRecord
    attempts: int = 0
    worker: _Worker | None = None
    file: int | None = None  # for the arrays of the answer
    future: Future[PreparedImage] | None = None
    prepared: PreparedImage | None = None

    def result(self) -> PreparedImage:
        """Waits until it is prepared.

        Raises:
            OSError: the system is at fault, see ``system_fault``.
        """
        while self.prepared is None:
            if self.future is not None:
                self.prepared = self.future.result()
            else:
                assert self.worker is not None
                self._pool._advance(self.worker)
        return self.prepared


class _Worker:
    """One worker process.

    Attributes:
        asked: what it has not answered yet, the oldest first.
        is_ready: it has started.
    """

    def __init__(self, how: tuple[Selection, int]) -> None:
        """Starts the process; raises OSError where it cannot be started."""
        self.asked: deque[Pending] = deque()
        self.is_ready = False
        program = (
            f"import sys; sys.path[:] = {[path or str(Path.cwd()) for path in sys.path]!r}; "
            "from transfiner_refine.pipeline.workers import work; work()"
        )
        options = ["-X", "utf8"] if sys.flags.utf8_mode else []
        self.socket, theirs = socket.socketpair()
        # a process that is started meanwhile never gets Ctrl-C, which is for the run alone
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process = subprocess.Popen(
                [sys.executable, *options, "-c", program],
                stdin=theirs.fileno(),
                stdout=2,  # a library that prints must not print into the results
                env=_KEEP_MEMORY | os.environ,
            )
        except OSError:
            self.socket.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        with suppress(OSError):  # noticed with the first image
            _send(self.socket, pickle.dumps(how))

    def end(self, seconds: float) -> str:
        """Waits a little for the process, then ends it, and says how it ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.process.kill()
        code = self.process.wait()
        self.socket.close()
        with suppress(ValueError):
            return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return f"signal {-code}"


class _SharedFiles:
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


def work() -> None:
    """The program of a worker: prepares the images it is sent, one after the other, until nobody sends any.

    It loads neither PyTorch nor OpenCV, which would take longer than the rest of its start. When the run that it
    works for ends, however it ends, so does this process.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as in the command, whose stderr this is
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run = socket.socket(fileno=os.dup(0))
    images: SimpleQueue[Any] = SimpleQueue()
    try:
        selection, max_image_pixels = pickle.loads(_receive(run)[0])
        _send(run, pickle.dumps((_READY, [])))
        threading.Thread(target=_listen, args=(run, images), daemon=True).start()
        while True:
            answer, file = images.get()
            if isinstance(answer, ImageRecord):
                try:
                    answer = prepare(answer, selection, max_image_pixels)
                except OSError as error:
                    answer = OSError(error.errno, error.strerror)
            _send(run, _dumped(answer, file))
            del answer
            if file is not None:
                os.close(file)
    except (EOFError, OSError):
        os._exit(0)


def _listen(run: socket.socket, images: SimpleQueue[Any]) -> None:
    """Reads ahead of the work, so that the end of the run is noticed in the middle of an image too."""
    while True:
        file = None
        try:
            message, file = _receive(run)
            images.put((pickle.loads(message), file))
        except (EOFError, OSError):
            os._exit(0)
        except Exception as error:
            images.put((str(error), file))


def _dumped(answer: object, file: int | None) -> bytes:
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


def _send(to: socket.socket, message: bytes, file: int | None = None) -> None:
    """Writes a message, with the descriptor of a file."""
    whole = _HEAD.pack(len(message)) + message
    sent = 0 if file is None else socket.send_fds(to, [whole], [file])
    to.sendall(memoryview(whole)[sent:])


def _receive(source: socket.socket) -> tuple[bytearray, int | None]:
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
