"""The program of a worker process: prepares the images it is sent, one after the other, until nobody sends any.

It loads neither PyTorch nor OpenCV, which would take longer than the rest of its start. Whatever becomes of it (a
decoder that crashes, a kill), the run it works for goes on; and when that run ends, however it ends, so does this
process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from io import BufferedReader
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from transfiner_refine.pipeline.handover import BUFFER, receive, send, widen
from transfiner_refine.pipeline.prepare import Preparing, prepare

__all__ = ["READY", "command", "main"]

READY = "ready"


def main() -> None:
    """Speaks over stdin and stdout: in come a ``Preparing`` and the descriptor of the shared memory, then images, each
    with its slot there; out go READY, then for each image a ``PreparedImage``, or the text of the exception if the
    image cannot be unpickled here.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as in the command, whose stderr this is
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the run decides what follows
    requests = BufferedReader(os.fdopen(os.dup(0), "rb", buffering=0), BUFFER)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a library that prints must not print into the answers
    widen(answers)
    try:
        how, descriptor = receive(requests)
        assert isinstance(how, Preparing)
        send(answers, READY)
        images: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=_listen, args=(requests, images), daemon=True).start()
        while True:
            request = images.get()
            if isinstance(request, Exception):
                send(answers, str(request))
                continue
            image, slot = request
            send(answers, prepare(image, how), None if descriptor is None else (descriptor, slot))
            del request, image
    except (EOFError, OSError):
        os._exit(0)


def _listen(requests: Any, images: SimpleQueue[Any]) -> None:
    """Reads ahead of the work, so that the end of the run is noticed in the middle of an image too."""
    while True:
        try:
            images.put(receive(requests))
        except (EOFError, OSError):
            os._exit(0)
        except Exception as error:
            images.put(error)


def command() -> list[str]:
    """The command line that starts a worker in this Python, with this process' module search path."""
    program = (
        f"import sys; sys.path[:] = {[path or str(Path.cwd()) for path in sys.path]!r}; "
        "from transfiner_refine.pipeline.worker import main; main()"
    )
    options = ["-X", "utf8"] if sys.flags.utf8_mode else []
    return [sys.executable, *options, "-c", program]
