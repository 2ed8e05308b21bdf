"""What training took, by its log: seconds of steps, and hours of GPUs, or of processes where it ran on CPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.tracking.jsonl import Point


class TimeSpent(NamedTuple):
    """Over all lives of a run, whatever the number of ranks in each; starts and waits in a queue are not in it.

    cpu_hours: of processes that trained without a GPU. Both hours are None where the log does not say on what.
    """

    train_seconds: float
    gpu_hours: float | None
    cpu_hours: float | None


def time_spent(points: Sequence[Point]) -> list[TimeSpent]:
    """The time spent by each point: samples since the point before it over the samples per second that it tells."""
    spent = TimeSpent(0.0, 0.0, 0.0)
    before = 0
    so_far = []
    for point in points:
        rate = point.metrics.get("train/samples_per_second", math.nan)
        seconds = (point.samples_seen - before) / rate if rate > 0 else 0.0
        gpus, ranks = point.metrics.get("ranks/gpus"), point.metrics.get("ranks/count")
        spent = TimeSpent(
            spent.train_seconds + seconds,
            _plus(spent.gpu_hours, gpus, seconds),
            _plus(spent.cpu_hours, None if gpus is None or ranks is None else ranks - gpus, seconds),
        )
        before = point.samples_seen
        so_far.append(spent)
    return so_far


def total_time(points: Sequence[Point]) -> TimeSpent:
    """By the last point."""
    return time_spent(points)[-1] if points else TimeSpent(0.0, 0.0, 0.0)


def _plus(hours: float | None, devices: float | None, seconds: float) -> float | None:
    return None if hours is None or devices is None else hours + devices * seconds / 3600
