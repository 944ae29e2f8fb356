"""Settings of all tests."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# pytest-xdist starts a process a core; PyTorch, imported later, would start threads for all cores in each
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# how long an example takes says more about what else the machine does than about the code
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# a shell starts its background jobs deaf to Ctrl-C, and what the tests start would inherit that
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
