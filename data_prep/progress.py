"""Progress on stderr: a bar on a terminal, a line now and then where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 10.0

Report = Callable[[int, int], None]  # (done, total)


def silent(done: int, total: int) -> None:
    """A report that nobody reads."""


@contextmanager
def progress(description: str) -> Iterator[Report]:
    """Yields `report(done, total)`, to be called as often as wanted."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(description, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > QUIET_SECONDS:
            last = time.monotonic()
            print(f"{description}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    yield report
