"""Training curves small enough for a page: each by itself, over samples, hours or device hours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.report.compare.run import Run
from pipeline.time_spent import time_spent
from pipeline.tracking.jsonl import Point
from pipeline.tracking.names import METRICS

FIGURES = (
    "train/loss", "train/tau", "npn/log_normalizer_mse", "train/accuracy", "train/samples_per_second", "npn/share",
    "data/wait_share", "train/grad_norm",
)  # fmt: skip
MOST_POINTS = 500  # of one curve
POINTS_OF_A_PAGE = 100_000  # of all curves together: about a megabyte
LEAST_POINTS = 100
MOST_BANDS = 4  # in a figure; more hide one another
LOG_AXIS_FROM = 50.0  # ratio of largest to smallest value from which a positive curve gets a log axis


class _Curve(NamedTuple):
    """A metric of one run. run: its index. x: (n,) samples seen. y: (n,). error: (n,) two standard errors, or None."""

    run: int
    x: np.ndarray
    y: np.ndarray
    error: np.ndarray | None


def figures(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A JSON-able figure for every metric of FIGURES that some run has logged.

    {key, title, unit, notes, log, series: [{run: index, samples: n, x, y, low?, high?}]}; x counts in so many samples;
    a value that is not finite is null and leaves a gap. low, high: two standard errors to either side.
    """
    shown = [(metric, curves) for metric in FIGURES if (curves := _curves(metric, runs))]
    total = sum(len(curves) for _, curves in shown)
    most = max(LEAST_POINTS, min(MOST_POINTS, POINTS_OF_A_PAGE // max(1, total)))
    return [_drawn(metric, curves, most, len(runs)) for metric, curves in shown]


def clock(run: Run) -> dict[str, list[float]]:
    """How to get from samples seen to the other axes, piece by piece: {samples, hours, gpu_hours, cpu_hours}.

    Of hours that are not known, an empty list.
    """
    points = run.points
    spent = time_spent(points)
    kept = thin(np.arange(len(points)), np.zeros(len(points)), LEAST_POINTS)
    axes: dict[str, list[float]] = {
        "samples": [0.0, *(float(points[i].samples_seen) for i in kept)],
        "hours": [0.0, *(_digits(spent[i].train_seconds / 3600) for i in kept)],
    }
    for name in ("gpu_hours", "cpu_hours"):
        hours = [getattr(spent[i], name) for i in kept]
        axes[name] = [0.0, *map(_digits, hours)] if None not in hours else []
    return axes


def thin(x: np.ndarray, y: np.ndarray, most: int) -> list[int]:
    """Places of at most `most` points that keep the curve's look: first, last, and each bucket's lowest and highest.

    x, y: (n,) in the order of x. Of a bucket without a finite point, one stays as a gap.
    """
    if len(x) <= most:
        return list(range(len(x)))
    kept = {0, len(x) - 1}
    finite = np.isfinite(y)
    low, high = np.where(finite, y, np.inf), np.where(finite, y, -np.inf)
    edges = np.linspace(1, len(x) - 1, (most - 2) // 2 + 1).astype(int)
    for start, end in itertools.pairwise(edges.tolist()):
        if end > start:
            kept |= {start + int(low[start:end].argmin()), start + int(high[start:end].argmax())}
    return sorted(kept)


def thin_points(metric: str, points: Sequence[Point], most: int) -> tuple[list[float], list[float]]:
    """Samples seen and values of at most `most` points, without those that are not finite."""
    x, y = curve(metric, points)
    kept = [i for i in thin(x, y, most) if math.isfinite(y[i])]
    return x[kept].tolist(), y[kept].tolist()


def curve(metric: str, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
    """Samples seen and values, (n,) each, of the points that have the metric."""
    logged = [point for point in points if metric in point.metrics]
    return np.array([p.samples_seen for p in logged]), np.array([p.metrics[metric] for p in logged], dtype=float)


def _curves(metric: str, runs: Sequence[Run]) -> list[_Curve]:
    """Of the runs that have logged it."""
    found = []
    for i, run in enumerate(runs):
        x, y = curve(metric, run.points)
        if np.isfinite(y).any():
            found.append(_Curve(i, x, y, _error(metric, run.points)))
    return found


def _error(metric: str, points: Sequence[Point]) -> np.ndarray | None:
    """Two standard errors of each value of the metric, (n,), 0 where it is not known; None where none was logged."""
    name = METRICS[metric].error
    errors = [2 * point.metrics.get(name, 0.0) for point in points if metric in point.metrics]
    return np.nan_to_num(errors, posinf=0.0) if any(errors) else None


def _drawn(metric: str, curves: list[_Curve], most: int, runs: int) -> dict[str, Any]:
    told = METRICS[metric]
    banded = len(curves) <= MOST_BANDS and any(curve.error is not None for curve in curves)
    notes = [told.note] if told.note and runs > 1 else []
    finite = np.concatenate([curve.y[np.isfinite(curve.y)] for curve in curves])
    return {
        "key": metric,
        "title": told.title,
        "unit": told.unit,
        "notes": [*notes, "Shaded: two standard errors to either side."] if banded else notes,
        "log": not told.share and bool(finite.min() > 0 and finite.max() / finite.min() >= LOG_AXIS_FROM),
        "series": [_series(curve, most, banded) for curve in curves],
    }


def _series(curve: _Curve, most: int, banded: bool) -> dict[str, Any]:
    kept = thin(curve.x, curve.y, most)
    samples = int(np.gcd.reduce(curve.x)) or 1
    series = {"run": curve.run, "samples": samples, "x": (curve.x[kept] // samples).tolist(), "y": _json(curve.y[kept])}
    if banded and curve.error is not None:
        y, error = curve.y[kept], curve.error[kept]
        # What has a standard error here is not negative, and a log axis has no zero.
        series |= {"low": _json(np.maximum(y - error, y / 10)), "high": _json(y + error)}
    return series


def _digits(value: float) -> float:
    """Four of them are more than a screen shows."""
    return float(f"{value:.4g}")


def _json(values: np.ndarray) -> list[float | None]:
    """None for what JSON has no word for."""
    return [_digits(value) if math.isfinite(value) else None for value in values]
