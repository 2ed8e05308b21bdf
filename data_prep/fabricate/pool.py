"""A function over many items on all cores, results in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from data_prep.workers import worker_pool

Item = TypeVar("Item")
Result = TypeVar("Result")
_CHUNK = 32


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int | None = None
) -> Iterator[Result]:
    """Yield `function(item)` in order. processes: None for one per usable core; 1 works in this process.

    Raises UserError when a worker was killed.
    """
    processes = processes or len(os.sched_getaffinity(0))
    if processes == 1 or len(items) <= _CHUNK:
        yield from map(function, items)
        return
    with worker_pool(processes) as pool:
        yield from pool.map(function, items, chunksize=_CHUNK)
