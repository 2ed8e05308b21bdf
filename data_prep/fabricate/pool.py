"""A function over many items on all cores, results in order."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_CHUNK = 32


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int | None = None
) -> Iterator[Result]:
    """Yield `function(item)` in order. processes: None for one per usable core; 1 works in this process."""
    processes = processes or len(os.sched_getaffinity(0))
    if processes == 1 or len(items) <= _CHUNK:
        yield from map(function, items)
        return
    # Spawned, not forked: the caller may run threads, such as an image server's.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_die_with_parent) as pool:
        yield from pool.map(function, items, chunksize=_CHUNK)


def _die_with_parent() -> None:
    """A killed parent leaves no idle workers behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
