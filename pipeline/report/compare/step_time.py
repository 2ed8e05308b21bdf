"""How fast a run trained, and what its training time went into."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from pipeline.report.compare.run import Run
from pipeline.time_spent import time_spent

PARTS = ("waiting for data", "NPN", "saving", "towers and loss")


class Throughput(NamedTuple):
    """samples_per_second: the median of what was logged. ranks: of the last life. None where it is not known."""

    samples_per_second: float | None
    ranks: float | None
    per_rank: float | None


def throughput(run: Run) -> Throughput:
    """By the log."""
    rates = [p.metrics["train/samples_per_second"] for p in run.points if "train/samples_per_second" in p.metrics]
    rate = statistics.median(rates) if rates else None
    ranks = run.points[-1].metrics.get("ranks/count") if run.points else None
    if ranks is None and run.trained is not None:
        ranks = run.trained.get("world_size")
    return Throughput(rate, ranks, rate / ranks if rate is not None and ranks else None)


def shares(run: Run) -> list[float | None]:
    """Of the training time, in the order of PARTS; the last is what remains. None where nothing was logged of it."""
    seconds = [0.0, *(spent.train_seconds for spent in time_spent(run.points))]
    total = seconds[-1]
    if total <= 0:
        return [None] * len(PARTS)

    def share_of(metric: str, of_a_step: bool) -> float | None:
        logged = [(i, p.metrics[metric]) for i, p in enumerate(run.points) if metric in p.metrics]
        known = [(i, value) for i, value in logged if math.isfinite(value)]
        if not known:
            return None
        return sum(value * (seconds[i + 1] - seconds[i] if of_a_step else 1) for i, value in known) / total

    named = [
        share_of("data/wait_share", of_a_step=True),
        share_of("npn/share", of_a_step=True),
        share_of("checkpoint/blocked_seconds", of_a_step=False),
    ]
    return [*named, max(0.0, 1 - sum(share or 0 for share in named))]
