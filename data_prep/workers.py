"""Worker processes that never outlive the process that started them.

A killed parent must not leave workers that go on writing into files that the next run takes over. Linux can
tell a process that its parent is gone (prctl PR_SET_PDEATHSIG); every worker asks for SIGKILL then.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

PR_SET_PDEATHSIG = 1


def worker_pool(
    processes: int, start: Callable[..., None] | None = None, *arguments: Any
) -> ProcessPoolExecutor:
    """A pool of fresh processes (spawn). start(*arguments), picklable, runs first in each of them."""
    return ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(os.getpid(), start, arguments),
    )


def _start(parent: int, start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C reaches the whole group: end without a traceback each
    if start is not None:
        start(*arguments)
