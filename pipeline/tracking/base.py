"""What a tracker is, and how several make one that cannot hurt training (contract 7)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

Status = Literal["finished", "failed", "preempted"]
EVALUATION = "eval/"  # begins the names of scores of checkpoints, which come late and are logged by themselves

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Receives the metrics of one run, in the order of its steps."""

    def log(self, metrics: Mapping[str, float], step: int, samples_seen: int) -> None:
        """One point of each named metric.

        step: optimizer steps done. samples_seen: samples consumed by then, over all ranks. Both never fall, except for
            metrics that come late, as scores of a checkpoint do: theirs never fall among themselves.
        """

    def close(self, status: Status) -> None:
        """The run ends; nothing is logged after it."""


class NullTracker:
    """Forgets everything: what every rank but the first has."""

    def log(self, metrics: Mapping[str, float], step: int, samples_seen: int) -> None:
        pass

    def close(self, status: Status) -> None:
        pass


class CompositeTracker:
    """Passes every call to each child, in order.

    A child that raises is warned about once; the others, the caller, and its own later calls go on.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)
        self._warned: set[int] = set()

    def log(self, metrics: Mapping[str, float], step: int, samples_seen: int) -> None:
        self._each(lambda tracker: tracker.log(metrics, step, samples_seen))

    def close(self, status: Status) -> None:
        self._each(lambda tracker: tracker.close(status))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for position, tracker in enumerate(self._trackers):
            try:
                call(tracker)
            except Exception as error:
                if position not in self._warned:
                    self._warned.add(position)
                    _log.warning("%s failed, training goes on: %s", type(tracker).__name__, error)
