"""Where images are prepared: in threads of this process, or in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from queue import LifoQueue
from threading import Lock
from types import TracebackType
from typing import cast

from transfiner_refine.pipeline.handover import receive, send, widen
from transfiner_refine.pipeline.prepare import PreparedImage, Preparing, no_memory, prepare, spoilt
from transfiner_refine.pipeline.worker import READY, command
from transfiner_refine.types import ImageRecord, InputError

__all__ = ["DecodingPool"]

_THREADS = min(4, os.cpu_count() or 1)  # without workers; more would take the cores from the network
_SECONDS_TO_END = 5
_ATTEMPTS = 2  # an image is not blamed for a worker that was killed by chance


class DecodingPool:
    """Prepares images ahead, in ``workers`` processes, or with 0 in a few threads of this process.

    A worker that dies on an image is replaced and the image tried once more; if that kills the next one too,
    the image is at fault. Where processes cannot be started at all, threads do the work.

    Attributes:
        size: images that are prepared at the same time.
    """

    def __init__(self, workers: int, how: Preparing) -> None:
        self._how, self._closing, self._lock = how, False, Lock()
        self._running: set[_Worker] = set()
        self._idle: LifoQueue[_Worker | None] = LifoQueue()
        if not sys.executable or hasattr(
            sys, "frozen"
        ):  # Python inside another program, which would start anew
            workers = 0
        self.size = workers or _THREADS
        for _ in range(workers):
            self._idle.put(None)  # started when there is work for it
        # Ctrl-C is for the main thread: workers take over the signal mask of the thread that starts them
        self._threads = ThreadPoolExecutor(self.size, "transfiner-decode", initializer=_block_ctrl_c)
        self._prepare = self._in_process if workers else self._here

    def __enter__(self) -> DecodingPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._closing = True
        for worker in self._running:  # nobody adds or removes one any more
            worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._running:
            worker.close()

    @property
    def processes(self) -> list[int]:
        """Numbers of the worker processes that run."""
        with self._lock:
            return [worker.number for worker in self._running]

    def submit(self, record: ImageRecord) -> Future[PreparedImage]:
        """Starts on an image as soon as there is a worker for it."""
        return self._threads.submit(self._prepare, record)

    def _here(self, record: ImageRecord) -> PreparedImage:
        return prepare(record, self._how)

    def _in_process(self, record: ImageRecord) -> PreparedImage:
        worker = self._idle.get()
        try:
            for _ in range(_ATTEMPTS):
                if worker is None:
                    worker = self._started()
                try:
                    answer = worker.prepare(record)
                except _DiedError as death:
                    ending = death
                    self._dismiss(worker)
                    worker = None
                    continue
                # text: the record could not be handed over, so it is prepared where it is
                return answer if isinstance(answer, PreparedImage) else self._here(record)
        except _NoWorkerError:
            self._prepare = self._here
            return self._here(record)
        except MemoryError:  # in the middle of an answer, of which nobody will read the rest
            assert worker is not None
            self._dismiss(worker)
            worker = None
            return spoilt(record, no_memory(record))
        finally:
            self._idle.put(worker)
        return spoilt(
            record,
            InputError(
                f"the process that decodes it dies of it ({ending})",
                file=record.path,
                remedy="replace the file, or leave out its records",
            ),
        )

    def _started(self) -> _Worker:
        with self._lock:
            if self._closing:
                raise CancelledError
            worker = _Worker()
            self._running.add(worker)
        try:
            worker.begin(self._how)
        except _NoWorkerError:
            self._dismiss(worker)
            raise
        return worker

    def _dismiss(self, worker: _Worker) -> None:
        with self._lock:
            if self._closing:
                raise CancelledError
            self._running.discard(worker)
        worker.kill()
        worker.close()


class _DiedError(Exception):
    """A worker ended in the middle of its work; the text says how."""


class _NoWorkerError(Exception):
    """Processes cannot be started here."""


class _Worker:
    """One worker process."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                command(), bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        except OSError as error:
            raise _NoWorkerError from error

    @property
    def number(self) -> int:
        """Its process number."""
        return self._process.pid

    def begin(self, how: Preparing) -> None:
        """Waits until it is ready.

        Raises:
            _NoWorkerError: it never is.
        """
        widen(self._requests)
        try:
            send(self._requests, how)
            if receive(self._answers) == READY:
                return
        except (OSError, EOFError):
            pass
        raise _NoWorkerError

    def prepare(self, record: ImageRecord) -> PreparedImage | str:
        """What the worker made of the record, or a text that says why it could not be handed over.

        Raises:
            _DiedError: the worker ended.
        """
        try:
            try:
                send(self._requests, record)
            except OSError:
                raise
            except Exception as error:  # pickle raises about anything
                return str(error)
            answer = receive(self._answers)
        except (OSError, EOFError):
            with suppress(
                subprocess.TimeoutExpired
            ):  # it has closed its pipe, which nearly always is its end
                self._process.wait(_SECONDS_TO_END)
            self.kill()
            raise _DiedError(_ending(self._process.returncode)) from None
        assert isinstance(answer, (PreparedImage, str))
        return answer

    def kill(self) -> None:
        """Ends the process at once; it holds nothing that could be lost."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Lets go of its pipes, when nobody uses them any more."""
        for pipe in (self._requests, self._answers):
            with suppress(OSError):
                pipe.close()

    @property
    def _requests(self) -> FileIO:
        return cast(FileIO, self._process.stdin)  # a pipe, and without a buffer

    @property
    def _answers(self) -> FileIO:
        return cast(FileIO, self._process.stdout)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _block_ctrl_c() -> None:
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
