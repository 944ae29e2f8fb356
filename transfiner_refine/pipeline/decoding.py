"""Where images are prepared: in threads of this process, or in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BufferedReader, FileIO
from types import TracebackType
from typing import cast

from transfiner_refine.errors import InputError
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.pipeline.handover import BUFFER, SharedMemory, receive, send, widen
from transfiner_refine.pipeline.prepare import PreparedImage, Preparing, failed, no_memory, prepare
from transfiner_refine.pipeline.worker import READY, command

__all__ = ["DecodingPool", "Pending"]

_THREADS = min(4, os.cpu_count() or 1)  # without workers; more would take the cores from the network
_SECONDS_TO_END = 5
# glibc otherwise gives the memory of each photo back and has the kernel clear it for the next one
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "67108864"}
_ATTEMPTS = 2  # an image is not blamed for a worker that was killed by chance


class DecodingPool:
    """Prepares images ahead, in ``workers`` processes, or with 0 in a few threads of this process.

    Every image goes at once to the worker that has the fewest, which answers in the same order. Nobody has to run
    here for the workers to go on, and answers are read by who asks for a result, so that no thread waits for
    Python's lock. May be used by one thread.

    A worker that dies is replaced, and the image that it was at is tried once more; if that kills the next one
    too, the image is at fault. Where processes cannot be started at all, threads do the work.

    Attributes:
        size: images that are prepared at the same time.
    """

    def __init__(self, workers: int, how: Preparing) -> None:
        # Python inside another program would start that one anew
        self._most = 0 if not sys.executable or hasattr(sys, "frozen") else workers
        self._how, self.size = how, self._most or _THREADS
        self._workers: list[_Worker] = []
        self._memory = SharedMemory()
        self._threads = ThreadPoolExecutor(_THREADS, "transfiner-decode")

    def __enter__(self) -> DecodingPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._memory.close()

    @property
    def processes(self) -> list[int]:
        """Numbers of the worker processes that run."""
        return [worker.number for worker in self._workers]

    def submit(self, image: ImageRecord) -> Pending:
        """Starts on an image as soon as a worker has time for it."""
        pending = Pending(self, image)
        self._assign(pending)
        return pending

    def _assign(self, pending: Pending) -> None:
        worker = min(self._workers, key=lambda each: len(each.asked), default=None)
        try:
            if len(self._workers) < self._most and (worker is None or worker.asked):
                worker = self._started()
        except OSError:
            self._most = len(self._workers)
        if worker is None:
            pending.future = self._threads.submit(prepare, pending.image, self._how)
            return
        try:
            worker.ask(pending)
        except OSError:
            self._replace(worker, pending)
        except Exception:  # pickle raises about anything; then it is prepared where it is
            pending.prepared = prepare(pending.image, self._how)

    def _started(self) -> _Worker:
        worker = _Worker(self._memory)
        self._workers.append(worker)
        try:
            worker.begin(self._how)
        except OSError:
            self._workers.remove(worker)
            worker.close()
            raise
        return worker

    def _advance(self, worker: _Worker) -> None:
        """Reads a worker's next answer."""
        try:
            answer = worker.answer()
        except MemoryError:  # in the middle of an answer, of which nobody will read the rest
            pending = worker.asked.popleft()
            pending.prepared = failed(pending.image, no_memory(pending.image))
            worker.close()
            self._replace(worker, is_to_blame=False)
        except (OSError, EOFError):
            self._replace(worker)
        else:
            if answer == READY:
                worker.is_ready = True
                return
            pending = worker.asked.popleft()
            # text: the image could not be unpickled there, so it is prepared here
            pending.prepared = (
                answer if isinstance(answer, PreparedImage) else prepare(pending.image, self._how)
            )

    def _replace(self, worker: _Worker, unasked: Pending | None = None, *, is_to_blame: bool = True) -> None:
        """Gives the work of a worker that has ended to others; the image that it was at may be to blame."""
        self._workers.remove(worker)
        ending = worker.end()
        left = [*worker.asked, *([] if unasked is None else [unasked])]
        for pending in worker.asked:
            if pending.slot is not None:
                self._memory.free(pending.slot)
        if not worker.is_ready:  # processes cannot be started here
            self._most = len(self._workers)
        elif worker.asked and is_to_blame:
            first = worker.asked[0]
            first.attempts += 1
            if first.attempts == _ATTEMPTS:
                left.remove(first)
                reason = f"the process that decodes it dies of it ({ending})"
                remedy = "replace the file, or leave out its records"
                error = InputError(reason, file=first.image.path, remedy=remedy)
                first.prepared = failed(first.image, error)
        for pending in left:
            self._assign(pending)


class Pending:
    """An image that is being prepared."""

    def __init__(self, pool: DecodingPool, image: ImageRecord) -> None:
        self._pool, self.image, self.attempts = pool, image, 0
        self.worker: _Worker | None = None
        self.slot: int | None = None
        self.future: Future[PreparedImage] | None = None
        self.prepared: PreparedImage | None = None

    def result(self) -> PreparedImage:
        """Waits until it is prepared."""
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

    def __init__(self, memory: SharedMemory) -> None:
        """Starts the process.

        Raises:
            OSError: it cannot be started.
        """
        self._memory, self.is_ready = memory, False
        self.asked: deque[Pending] = deque()
        descriptors = () if memory.descriptor is None else (memory.descriptor,)
        with _deaf_to_ctrl_c():
            self._process = subprocess.Popen(
                command(),
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=descriptors,
                env=_KEEP_MEMORY | os.environ,
            )
        # several small reads as one, for at each of them another thread may take Python's lock
        self._answers = BufferedReader(cast(FileIO, self._process.stdout), BUFFER)

    @property
    def number(self) -> int:
        """Its process number."""
        return self._process.pid

    def begin(self, how: Preparing) -> None:
        """Tells it what it works with; its first answer is READY.

        Raises:
            OSError: it has ended.
        """
        widen(self._requests)
        send(self._requests, (how, self._memory.descriptor))

    def ask(self, pending: Pending) -> None:
        """Hands it an image.

        Raises:
            OSError: it has ended.
            Exception: the image cannot be handed over.
        """
        slot = None if self._memory.descriptor is None else self._memory.take()
        try:
            send(self._requests, (pending.image, slot))
        except BaseException:
            if slot is not None:
                self._memory.free(slot)
            raise
        pending.worker, pending.slot = self, slot
        self.asked.append(pending)

    def answer(self) -> object:
        """READY, or what it made of the image it was asked first, or a text that says why it could not read it.

        Raises:
            OSError, EOFError: it has ended.
        """
        if not self.is_ready:
            return receive(self._answers)
        return receive(self._answers, self._memory, self.asked[0].slot)

    def end(self) -> str:
        """Waits a little for a process that seems to have ended, then ends it, and says how it ended."""
        with suppress(subprocess.TimeoutExpired):  # its pipes are closed, which nearly always is its end
            self._process.wait(_SECONDS_TO_END)
        self.close()
        return _ending(self._process.returncode)

    def kill(self) -> None:
        """Ends the process at once; it holds nothing that could be lost."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process and lets go of its pipes."""
        self.kill()
        self._process.wait()
        for pipe in (self._requests, self._answers):
            with suppress(OSError):
                pipe.close()

    @property
    def _requests(self) -> FileIO:
        return cast(FileIO, self._process.stdin)  # a pipe, and without a buffer


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started meanwhile never get Ctrl-C, which is for the run alone."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
