"""Work in processes of its own: images prepared ahead, so that a crash costs one image and no core idles, or refined.

``concurrent.futures.ProcessPoolExecutor`` is no choice here: it runs the main program of a script again in each
process, leaves them behind when the run is killed, and does not tell which image has crashed one. A worker is a
Python with this module at the other end of a socket. Requests and answers are pickled; the large arrays of an answer
lie in a file without a name in memory (Linux), which goes along with the request as a descriptor, and are used here
without a copy. It is gone with the last process that has it open, however that ends.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
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
from typing import Any, Generic, Protocol, TypeVar

from transfiner_refine.errors import InputError
from transfiner_refine.pipeline.messages import SharedFiles, dumped, receive, send
from transfiner_refine.refine.engine import usable_cores

_THREADS = min(4, usable_cores())  # without workers; more would take the cores from the network
_SECONDS_TO_END = 5
# glibc otherwise gives the memory of each image back and has the kernel clear it for the next one
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "67108864"}
_ATTEMPTS = 2  # an item is not blamed for a worker that was killed by chance
_READY = "ready"  # a worker's first answer
_Answer = TypeVar("_Answer")
_Answer_co = TypeVar("_Answer_co", covariant=True)


class Task(Protocol[_Answer_co]):
    """What workers do with an item; it is pickled for each of them. No answer is None.

    Attributes:
        in_threads: threads of this process can do it where no other process can be started.
    """

    @property
    def in_threads(self) -> bool: ...

    def begin(self, number: int) -> None:
        """Called first in each process; no two that live have the same number, counted from 0."""

    def __call__(self, item: Any, /) -> _Answer_co:
        """The answer; an exception is raised by who asks for the answer."""

    def crashed(self, item: Any, how: str | None, /) -> _Answer_co:
        """The answer for an item that crashed its processes; None where the answer did not fit into the memory."""


class WorkerPool(Generic[_Answer]):
    """Does a task ahead, in ``workers`` processes, or with 0 in a few threads of this process.

    Every item goes at once to the worker that has the fewest, which answers in the same order. Answers are read by
    who asks for a result, so that no thread waits for Python's lock. May be used by one thread; ``size`` is how many
    items are worked on at the same time.

    A worker that dies is replaced, and the item that it was at is tried once more; if that kills the next one
    too, the item is at fault. Where processes cannot be started at all, threads do the work.
    """

    def __init__(self, workers: int, task: Task[_Answer]) -> None:
        # Python inside another program would start that one anew
        can_start = sys.executable and not hasattr(sys, "frozen") and hasattr(socket, "send_fds")
        self._most = workers if can_start else 0
        self._task, self.size = task, self._most or _THREADS
        self._workers: list[_Worker] = []
        self._files = SharedFiles()
        self._threads = ThreadPoolExecutor(_THREADS, "transfiner-decode")

    def __enter__(self) -> WorkerPool[_Answer]:
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

    def submit(self, item: Any) -> Pending[_Answer]:
        """Starts on an item as soon as a worker has time for it.

        Raises:
            OSError: no process can be started, and threads cannot do the task.
        """
        pending = Pending(self, item)
        self._assign(pending)
        return pending

    def wait(self) -> None:
        """Waits until some worker has said something."""
        asked = {worker.socket: worker for worker in self._workers if worker.asked}
        for ready in select.select(list(asked), [], [])[0]:
            self._advance(asked[ready])

    def _assign(self, pending: Pending[_Answer]) -> None:
        worker = min(self._workers, key=lambda each: len(each.asked), default=None)
        try:
            if len(self._workers) < self._most and (worker is None or worker.asked):
                taken = {each.number for each in self._workers}
                worker = _Worker(self._task, next(n for n in range(self._most) if n not in taken))
                self._workers.append(worker)
        except OSError:
            self._most = len(self._workers)
        if worker is None:
            self._fail(pending, None)
            if not self._task.in_threads:
                raise OSError("no process can be started")
            pending.future = self._threads.submit(self._task, pending.item)
            return
        try:
            message = pickle.dumps(pending.item, 5)
        except Exception:  # pickle raises about anything; then it is done where it is
            pending.answer = self._task(pending.item)
            return
        pending.worker = worker
        worker.asked.append(pending)
        try:
            if pending.file is None:
                pending.file = self._files.take()
            send(worker.socket, message, pending.file)
        except OSError:
            self._replace(worker)

    def _advance(self, worker: _Worker) -> None:
        """Reads a worker's next answer."""
        try:
            answer, lengths = pickle.loads(receive(worker.socket)[0])
            if answer == _READY:
                worker.is_ready = True
                return
            if isinstance(answer, InputError):
                raise answer
            answer = pickle.loads(answer, buffers=self._files.read(worker.asked[0].file, lengths))
        except MemoryError:  # in the middle of an answer, of which nobody will read the rest
            pending = worker.asked.popleft()
            self._fail(pending, self._task.crashed(pending.item, None))
            self._replace(worker, is_to_blame=False)
        except (OSError, EOFError):
            self._replace(worker)
        else:
            pending = worker.asked.popleft()
            if isinstance(answer, Exception):
                raise answer
            # None: the item could not be unpickled there
            pending.answer = self._task(pending.item) if answer is None else answer

    def _replace(self, worker: _Worker, *, is_to_blame: bool = True) -> None:
        """Gives the work of a worker that has ended to others; the item that it was at may be to blame."""
        self._workers.remove(worker)
        ending = worker.end(_SECONDS_TO_END if is_to_blame else 0)
        left = list(worker.asked)
        if not worker.is_ready:  # processes cannot be started here
            self._most = len(self._workers)
        elif left and is_to_blame:
            left[0].attempts += 1
            if left[0].attempts == _ATTEMPTS:
                first = left.pop(0)
                self._fail(first, self._task.crashed(first.item, ending))
        for pending in left:
            self._assign(pending)

    def _fail(self, pending: Pending[_Answer], answer: _Answer | None) -> None:
        """Notes that no worker will answer."""
        pending.answer = answer
        if pending.file is not None:
            self._files.release(pending.file)
            pending.file = None


@dataclass
class Pending(Generic[_Answer]):
    """An item that is being worked on, by a worker or in a thread of this process."""

    _pool: WorkerPool[_Answer]
    item: Any
    attempts: int = 0
    worker: _Worker | None = None
    file: int | None = None  # for the arrays of the answer
    future: Future[_Answer] | None = None
    answer: _Answer | None = None

    def result(self) -> _Answer:
        """Waits until it is done; raises what the task has raised."""
        while self.answer is None:
            if self.future is not None:
                self.answer = self.future.result()
            else:
                assert self.worker is not None
                self._pool._advance(self.worker)
        return self.answer


class _Worker:
    """One worker process.

    Attributes:
        asked: what it has not answered yet, the oldest first.
        is_ready: it has started.
    """

    def __init__(self, task: Task[Any], number: int) -> None:
        """Starts the process; raises OSError where it cannot be started."""
        self.asked: deque[Pending[Any]] = deque()
        self.is_ready, self.number = False, number
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
        with suppress(OSError):  # noticed with the first item
            send(self.socket, pickle.dumps((task, number)))

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
    """The program of a worker: does its task with the items it is sent, one after the other, until nobody sends any.

    To prepare images it loads neither PyTorch nor OpenCV, which would take longer than the rest of its start. When the
    run that it works for ends, however it ends, so does this process.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as in the command, whose stderr this is
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run = socket.socket(fileno=os.dup(0))
    items: SimpleQueue[Any] = SimpleQueue()
    try:
        message, _ = receive(run)
        try:
            task, number = pickle.loads(message)
        except Exception as error:  # it is of a program that is no module
            send(run, pickle.dumps((not_handed_over(error), [])))
            return
        task.begin(number)
        send(run, pickle.dumps((_READY, [])))
        threading.Thread(target=_listen, args=(run, items), daemon=True).start()
        while True:
            item, file = items.get()
            answer = None
            try:
                answer = None if item is None else task(item)
            except OSError as error:
                answer = OSError(error.errno, error.strerror)
            except Exception as error:
                answer = error
            send(run, dumped(answer, file))
            del answer, item
            if file is not None:
                os.close(file)
    except (EOFError, OSError):
        os._exit(0)


def not_handed_over(error: Exception) -> InputError:
    """What to say of a task that cannot be pickled, or found by another process."""
    reason = f"this refiner cannot be handed to other processes ({error})"
    return InputError(reason, remedy="define it in a module, or refine in one process")


def _listen(run: socket.socket, items: SimpleQueue[Any]) -> None:
    """Reads ahead of the work, so that the end of the run is noticed in the middle of an item too."""
    while True:
        file = None
        try:
            message, file = receive(run)
            items.put((pickle.loads(message), file))
        except (EOFError, OSError):
            os._exit(0)
        except Exception:
            items.put((None, file))
