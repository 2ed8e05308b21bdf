"""How much of one host's time a shard may take: connections at once, and pauses that the host asks for."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_LONGEST_SLEEP = 0.5  # seconds, so that a stopped download ends soon


@dataclass
class _Host:
    slots: threading.BoundedSemaphore
    resumes: float = 0.0  # monotonic seconds; nothing is asked before
    paused_seconds: float = 0.0  # all pauses together
    closed: str | None = None  # why it is asked no more


class Hosts:
    """The hosts of one shard. Threads share it."""

    def __init__(self, connections: int, patience_seconds: float) -> None:
        """connections: per host at once. patience_seconds: pauses that a host may ask for, together."""
        self._patience = patience_seconds
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = defaultdict(lambda: _Host(threading.BoundedSemaphore(connections)))

    @contextmanager
    def turn(self, name: str) -> Iterator[str | None]:
        """Wait for one of the host's connections, and until its pause is over; yields why it is asked no more."""
        with self._lock:
            host = self._hosts[name]
        with host.slots:
            while host.closed is None and (wait := host.resumes - time.monotonic()) > 0:
                time.sleep(min(wait, _LONGEST_SLEEP))
            yield host.closed

    def pause(self, name: str, seconds: float | None, message: str) -> None:
        """The host asked for a pause (None: without saying for how long); too long a one, and it is asked no more."""
        with self._lock:
            host, now = self._hosts[name], time.monotonic()
            if host.resumes > now and seconds is None:
                return  # an answer to what was asked before the pause began
            wait = max(0.0, seconds if seconds is not None else 1.0 + host.paused_seconds)
            host.paused_seconds += max(0.0, now + wait - max(now, host.resumes))
            host.resumes = max(host.resumes, now + wait)
            if host.paused_seconds > self._patience:
                host.closed = f"{message} (not asked again: it wants a longer pause)"


def retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for, a number or a date; None where it says nothing."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
