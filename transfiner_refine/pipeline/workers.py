"""Images prepared ahead in processes of their own, so that a crashing decoder costs one image and no core idles.

``concurrent.futures.ProcessPoolExecutor`` is no choice here: it runs the main program of a script again in each
process, leaves them behind when the run is killed, and does not tell which image has crashed one. A worker is a
Python with this module at the other end of a socket. Requests and answers are pickled; the large arrays of an answer
lie in a file without a name in memory (Linux), which comes along as a descriptor and is used here without a copy. It
is gone with the last process that has it open, however that ends.
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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any
from weakref import WeakSet

from transfiner_refine.errors import InputError
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.pipeline.prepare import PreparedImage, Selection, failed, no_memory, prepare

__all__ = ["Pending", "WorkerPool", "work"]

_THREADS = min(4, os.cpu_count() or 1)  # without workers; more would take the cores from the network
_SECONDS_TO_END = 5
# glibc otherwise gives the memory of each image back and has the kernel clear it for the next one
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "67108864"}
_ATTEMPTS = 2  # an image is not blamed for a worker that was killed by chance
_READY = "ready"  # a worker's first answer
_HEAD = struct.Struct("<q")  # bytes of a message
_SHARED_FROM = 1 << 16  # bytes of an array; a smaller one is pickled with the rest
_ALIGNED = 64  # bytes to which an array's length is rounded up, so that each begins where numbers may lie
_MOST_MAPPED = 256  # arrays in use at a time without a copy: each holds a file descriptor
_mapped: WeakSet[mmap.mmap] = WeakSet()


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
        self._threads = ThreadPoolExecutor(_THREADS, "transfiner-decode")

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()  # it holds nothing that could be lost
        for worker in self._workers:
            worker.end(0)
        self._threads.shutdown(wait=True, cancel_futures=True)

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
            _send(worker.socket, message)
        except OSError:
            self._replace(worker)

    def _advance(self, worker: _Worker) -> None:
        """Reads a worker's next answer."""
        try:
            answer = _loaded(*_receive(worker.socket))
        except MemoryError:  # in the middle of an answer, of which nobody will read the rest
            pending = worker.asked.popleft()
            pending.prepared = failed(pending.image, no_memory(pending.image))
            self._replace(worker, is_to_blame=False)
        except (OSError, EOFError):
            self._replace(worker)
        else:
            if answer == _READY:
                worker.is_ready = True
                return
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
                left.pop(0).prepared = failed(first.image, error)
        for pending in left:
            self._assign(pending)


@dataclass
class Pending:
    """An image that is being prepared, by a worker or in a thread of this process."""

    _pool: WorkerPool
    image: ImageRecord
    attempts: int = 0
    worker: _Worker | None = None
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
        _send(run, _dumped(_READY)[0])
        threading.Thread(target=_listen, args=(run, images), daemon=True).start()
        while True:
            answer = images.get()
            if isinstance(answer, ImageRecord):
                try:
                    answer = prepare(answer, selection, max_image_pixels)
                except OSError as error:
                    answer = OSError(error.errno, error.strerror)
            _send(run, *_dumped(answer))
            del answer
    except (EOFError, OSError):
        os._exit(0)


def _listen(run: socket.socket, images: SimpleQueue[Any]) -> None:
    """Reads ahead of the work, so that the end of the run is noticed in the middle of an image too."""
    while True:
        try:
            images.put(pickle.loads(_receive(run)[0]))
        except (EOFError, OSError):
            os._exit(0)
        except Exception as error:
            images.put(str(error))


def _dumped(answer: object) -> tuple[bytes, IO[bytes] | None]:
    """An answer as it is sent: its pickle with the lengths of its large arrays, and a file without a name with them."""
    arrays: list[memoryview] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes >= _SHARED_FROM:
            arrays.append(buffer.raw())
        return buffer.raw().nbytes < _SHARED_FROM

    if sys.platform == "linux":
        with suppress(OSError):  # a limit on the size of files or on memory
            pickled = pickle.dumps(answer, 5, buffer_callback=is_small)
            message = pickle.dumps((pickled, [array.nbytes for array in arrays]))
            if not arrays:
                return message, None
            file = os.fdopen(os.memfd_create("transfiner-refine"), "wb", buffering=0)
            parts = [part for array in arrays for part in (array, bytes(-array.nbytes % _ALIGNED))]
            if sum(map(file.write, parts)) == sum(map(len, parts)):
                return message, file
            file.close()
    return pickle.dumps((pickle.dumps(answer, 5), [])), None


def _loaded(message: bytes | bytearray, file: IO[bytes] | None) -> Any:
    """The answer of a message; its arrays lie where the worker has put them, or in a copy."""
    pickled, lengths = pickle.loads(message)
    buffers = []
    if file is not None:
        with file:
            total = sum(length + -length % _ALIGNED for length in lengths)
            shared = _mapping(file, total)
        for length in lengths:
            buffers.append(shared[:length])
            shared = shared[length + -length % _ALIGNED :]
    return pickle.loads(pickled, buffers=buffers)


def _mapping(file: IO[bytes], length: int) -> memoryview:
    if len(_mapped) < _MOST_MAPPED:
        with suppress(OSError):
            mapping = mmap.mmap(file.fileno(), length)
            _mapped.add(mapping)
            return memoryview(mapping)
    copy = bytearray(length)
    file.seek(0)
    file.readinto(copy)  # type: ignore[attr-defined]
    return memoryview(copy)


def _send(to: socket.socket, message: bytes, file: IO[bytes] | None = None) -> None:
    """Writes a message, with a file beside it, which is closed here."""
    whole, sent = _HEAD.pack(len(message)) + message, 0
    if file is not None:
        with file:
            sent = socket.send_fds(to, [whole], [file.fileno()])
    to.sendall(memoryview(whole)[sent:])


def _receive(source: socket.socket) -> tuple[bytearray, IO[bytes] | None]:
    """The next message and the file beside it; EOFError where the other side has ended."""
    head, descriptors, _, _ = socket.recv_fds(source, _HEAD.size, 1, socket.MSG_WAITALL)
    file = os.fdopen(descriptors[0], "rb") if descriptors else None
    try:
        if len(head) < _HEAD.size:
            raise EOFError
        message = bytearray(*_HEAD.unpack(head))
        rest = memoryview(message)
        while rest:
            read = source.recv_into(rest, flags=socket.MSG_WAITALL)
            if not read:
                raise EOFError
            rest = rest[read:]
    except BaseException:
        if file is not None:
            file.close()
        raise
    return message, file
