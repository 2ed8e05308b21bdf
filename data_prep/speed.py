"""How fast do an item's own URLs come? A short fetch of a few of them, with all guards, before the long one."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from data_prep.corpus import Fetch, Images
from data_prep.guarded_fetch import GuardedFetch
from data_prep.outcomes import OK, classify, describe, tally
from data_prep.watch import NOT_ASKED, Watch, too_few
from pipeline.errors import UserError

URLS, SECONDS = 128, 5.0  # at most; nothing is asked for after that
_LONG_HOURS = 48


@dataclass(frozen=True)
class Speed:
    """What a few URLs brought. outcomes: cause to URLs, OK where bytes came; bytes: of these; seconds: it took."""

    outcomes: dict[str, int]
    bytes: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Of one process, whatever became of the rows."""
        return sum(self.outcomes.values()) / self.seconds

    @property
    def images_per_second(self) -> float:
        """Of one process."""
        return self.outcomes.get(OK, 0) / self.seconds

    @property
    def megabytes_per_second(self) -> float:
        """Of one process, in 10^6 bytes."""
        return self.bytes / 1e6 / self.seconds

    def hours(self, rows: int, processes: int) -> float:
        """That so many rows take so many processes on this machine."""
        return rows / (self.rows_per_second * processes) / 3600

    def describe(self, rows: int, processes: int) -> str:
        """For a person: what was measured, and what it means for so many rows."""
        hours = self.hours(rows, processes)
        least = f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"
        text = (
            f"a first look at {sum(self.outcomes.values())} of the URLs: {self.images_per_second:,.1f} images/s, "
            f"{self.megabytes_per_second:,.2f} MB/s ({describe(self.outcomes)}). At that, {rows:,} rows take {least} "
            f"with {processes} process{'es' if processes > 1 else ''}, and what decoding takes."
        )
        if hours > _LONG_HOURS:
            text += " More --processes or --threads, or more machines with an item each (--task), share the work."
        return text


def measure_speed(urls: Sequence[str], fetch: Fetch, images: Images, expected_yield: float) -> Speed:
    """Ask for some of `urls`, spread evenly, once each, with one process's connections.

    Raises UserError with a diagnosis when no server answers at all (`too_few`), or this machine fails.
    """
    number = min(len(urls), URLS)
    chosen = [urls[place * len(urls) // number] for place in range(number)]
    watch = Watch(expected_yield=0)
    short = {"retries": 0, "patience_seconds": 0, "total_seconds": min(fetch.total_seconds, 2 * SECONDS)}
    hasty = fetch.model_copy(update=short)
    ask, sizes, lock = GuardedFetch(hasty, images, watch), list[int](), threading.Lock()
    began = time.monotonic()

    def one(url: str) -> str:
        if time.monotonic() - began > SECONDS:
            return NOT_ASKED
        _, stream, message = ask((0, url))
        if stream is None:
            return NOT_ASKED if message == NOT_ASKED else classify("failed_to_download", message)
        with stream, lock:
            sizes.append(stream.seek(0, 2))
        return OK

    with ThreadPoolExecutor(fetch.threads) as threads:
        outcomes = tally(threads.map(one, chosen))
    seconds = time.monotonic() - began
    outcomes.pop(NOT_ASKED, None)
    if problem := watch.stopped or too_few(outcomes, expected_yield):
        raise UserError(f"a first look at {number} of the URLs failed: {problem}")
    return Speed(outcomes, sum(sizes), seconds)
