"""How much training there is, and how long it still takes, by its log."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.tracking.jsonl import Point

RECENT = 10  # points whose median rate tells when training will end
_RATE = "train/samples_per_second"


def total_samples(train: Mapping[str, Any], points: Sequence[Point]) -> float | None:
    """That training is to see; None where the recipe says epochs and nothing has been logged yet.

    train: the recipe's section, of which what makes no sense counts as absent.
    """
    batch, samples, steps, epochs = (
        _positive(train.get(name)) for name in ("global_batch_size", "samples", "steps", "epochs")
    )
    if batch is None:
        return None
    if steps is not None:
        return steps * batch
    if samples is None and epochs is not None:
        told = next((point for point in reversed(points) if _positive(point.metrics.get("train/epoch"))), None)
        if told is not None:
            samples = epochs * round(told.samples_seen / told.metrics["train/epoch"])
    return None if samples is None else math.floor(samples / batch) * batch


def recent_rate(points: Sequence[Point]) -> float | None:
    """Samples per second: the median of what was logged last."""
    rates = [point.metrics[_RATE] for point in points[-RECENT:] if point.metrics.get(_RATE, 0) > 0]
    return statistics.median(rates) if rates else None


def seconds_left(points: Sequence[Point], total: float | None, now: float) -> float | None:
    """Until `total` samples are seen at the recent rate, by a training that runs; None if not known.

    now: unix seconds. Since the last point it has trained, but no longer than the recent points took: a log that is
    older was left by a job that ended, and the one that goes on is still starting.
    """
    rate = recent_rate(points)
    if rate is None or not total:
        return None
    recent = points[-RECENT:]
    seen, between = recent[-1].samples_seen, recent[-1].samples_seen - recent[0].samples_seen
    return max(0.0, (total - seen) / rate - min(now - recent[-1].time, between / rate))


def _positive(value: Any) -> float | None:
    """A number above 0, or None for anything else."""
    return float(value) if isinstance(value, int | float) and value > 0 and math.isfinite(value) else None
