"""Worker processes that never outlive the process that started them.

A killed parent must not leave workers that go on writing into files that the next run takes over.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from pipeline.processes import die_with_parent


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
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole group: no traceback of each
    if start is not None:
        start(*arguments)
