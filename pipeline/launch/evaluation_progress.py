"""What a person sees of an evaluation: a line per finished task or part, and bars where there is a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from pipeline.evaluation.measure import Progress as Report


@contextmanager
def evaluation_progress() -> Iterator[Report]:
    """Yields `report(task or part, samples done, samples in all, share of the missing work that is done)`.

    The end of the whole is estimated from the share.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    first = time.monotonic()
    begun: dict[str, tuple[float, TaskID]] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        whole = progress.add_task("%", total=100, note="")

        def report(what: str, done: int, total: int, share: float) -> None:
            now = time.monotonic()
            if what not in begun and done == total:
                console.print(f"{what}: stands", highlight=False, soft_wrap=True)
                return
            if what not in begun:
                begun[what] = now, progress.add_task(what, total=total, note="")
            since, bar = begun[what]
            speed = f"{done / (now - since):.0f} images/s" if now > since else ""
            end = _estimate(now - first, share)
            progress.update(bar, completed=done, note=speed)
            progress.update(whole, completed=round(100 * share), note=end)
            if done == total:
                line = f"{what}: {done} images, {speed}; {share:.0%} of the work, {end}"
                console.print(line, highlight=False, soft_wrap=True)
                progress.remove_task(bar)
                del begun[what]

        yield report


def _estimate(seconds: float, share: float) -> str:
    """When it ends, after so many seconds for this share of the work."""
    if not share:
        return ""
    left = timedelta(seconds=round(seconds * (1 - share) / share))
    return f"{left} left, until {datetime.now() + left:%a %H:%M:%S}"
