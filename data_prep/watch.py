"""Stop early: a download that brings almost nothing says more about this machine's network than about the web."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from data_prep.outcomes import NO_ANSWER, OK, describe, tally

FIRST_ROWS = 1000
NOT_ASKED = "not asked: the download was stopped"  # img2dataset records it for each row that was left; never an outcome
_FAR_BELOW = 0.25  # of the expected yield
UNSTATED_YIELD = 0.04  # expected of a corpus that publishes none

_HINTS = {
    "connection": "Is the server running, and reachable from here? Does this machine need a proxy (https_proxy)?",
    "dns": "Names do not resolve from here: check the network and DNS of this machine, or ask its resolver less "
    "(--threads).",
    "timeout": "Nothing answered in time: check the network, or raise --timeout; a firewall may swallow what is sent.",
    "tls": "Check the certificates and the clock of this machine; a proxy may be opening its traffic.",
    "private_address": "Names lead into the private network: if that is meant, allow it with --allow-private.",
    "http_407": "The proxy wants a login: put it into https_proxy and http_proxy.",
    "http_403": "The servers refuse this machine: its address may be blocked.",
    "http_429": "The servers want fewer requests: lower --threads and fetch.connections_per_host.",
    "not_an_image": "Something other than images comes back: a proxy's or a portal's page?",
}
_ACCEPT = "If these URLs are really dead, accept it with --expected-yield 0."


class Watch:
    """Counts rows as they end, in any thread, and says when to stop: those of a shard, one by one, where they are asked
    for; those of a work item, shard by shard, in the process that hands these out."""

    def __init__(self, expected_yield: float) -> None:
        self._expected = expected_yield
        self._counts: Counter[str] = Counter()
        self._unanswered = 0  # rows in a row
        self._lock = threading.Lock()
        self.stopped: str | None = None  # why no more rows are asked for

    @property
    def counts(self) -> dict[str, int]:
        """Cause to rows that have ended."""
        return tally(self._counts)

    def add(self, counts: Mapping[str, int]) -> None:
        """Rows that ended elsewhere."""
        with self._lock:
            young = self._counts.total() < FIRST_ROWS
            self._counts.update(counts)
            old = self._counts.total() >= FIRST_ROWS
            if young and old and (diagnosis := too_few(self._counts, self._expected)):
                self.stop(diagnosis)

    def count(self, cause: str) -> None:
        """One row ended so."""
        with self._lock:
            self._counts[cause] += 1
            self._unanswered = self._unanswered + 1 if cause in NO_ANSWER else 0
            if self._counts.total() == FIRST_ROWS and (diagnosis := too_few(self._counts, self._expected)):
                self.stop(diagnosis)
            elif self._unanswered == FIRST_ROWS and self._expected:
                self.stop(f"{FIRST_ROWS:,} rows one after the other without any answer. {_HINTS[cause]} {_ACCEPT}")

    def stop(self, reason: str) -> None:
        """No more rows are asked for; the first reason stands."""
        self.stopped = self.stopped or reason


def too_few(counts: Mapping[str, int], expected_yield: float) -> str | None:
    """A diagnosis, if so few of the rows are images that they should not count as done; None where all is well.

    From a thousand rows on: less than a quarter of what is expected. Of fewer: not one, and no server answered.
    expected_yield: share of rows; 0 accepts anything.
    """
    rows, ok = sum(counts.values()), counts.get(OK, 0)
    if not rows or not expected_yield:
        return None
    if rows < FIRST_ROWS:
        poor = not ok and counts.keys() <= NO_ANSWER
    else:
        poor = ok < _FAR_BELOW * expected_yield * rows
    if not poor:
        return None
    failures = {cause: number for cause, number in counts.items() if cause != OK}
    main = max(failures, key=lambda cause: failures[cause])
    return (
        f"{ok:,} of {rows:,} rows are images, where {expected_yield:.0%} were expected ({describe(failures)}). "
        + " ".join(filter(None, (_HINTS.get(main), _ACCEPT)))
    )
