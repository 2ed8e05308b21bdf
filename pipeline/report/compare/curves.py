"""Training curves small enough for a page: each by itself, over samples, hours or device hours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.compare.run import Run
from pipeline.report.figures import LOG_AXIS_FROM
from pipeline.time_spent import time_spent
from pipeline.tracking.jsonl import Point

MOST_POINTS = 500  # of one curve
POINTS_OF_A_PAGE = 100_000  # of all curves together: about a megabyte
LEAST_POINTS = 100


@dataclass(frozen=True)
class Figure:
    """One metric of all runs. note: what to bear in mind when comparing it. share: it lies between 0 and 1."""

    metric: str
    title: str
    unit: str
    note: str = ""
    share: bool = False


FIGURES = (
    Figure("train/loss", "Loss", "training objective", "Losses of different objectives have different scales."),
    Figure("train/tau", "Temperature", "tau"),
    Figure("npn/log_normalizer_mse", "Log-normalizer error", "mean square"),
    Figure(
        "train/accuracy",
        "Accuracy within a batch",
        "share of pairs",
        "Among the pairs of a rank: more of them are harder.",
        share=True,
    ),
    Figure("train/samples_per_second", "Throughput", "samples per second"),
    Figure("npn/share", "Time of the NPN", "share of a step", share=True),
    Figure("data/wait_share", "Waiting for data", "share of a step", share=True),
    Figure("train/grad_norm", "Gradient norm", "before clipping"),
)


def figures(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A JSON-able figure for every metric that some run has logged.

    {key, title, unit, note, log, series: [{run: index, samples: n, x, y}]}; x counts in so many samples; a value that
    is not finite is null and leaves a gap.
    """
    shown = []
    for figure in FIGURES:
        curves = [(i, curve(figure.metric, run.points)) for i, run in enumerate(runs)]
        shown.append((figure, [(i, x, y) for i, (x, y) in curves if np.isfinite(y).any()]))
    total = sum(len(curves) for _, curves in shown)
    most = max(LEAST_POINTS, min(MOST_POINTS, POINTS_OF_A_PAGE // max(1, total)))
    return [_drawn(figure, curves, most) for figure, curves in shown if curves]


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


def _drawn(figure: Figure, curves: list[tuple[int, np.ndarray, np.ndarray]], most: int) -> dict[str, Any]:
    series = []
    for run, x, y in curves:
        kept = thin(x, y, most)
        samples = int(np.gcd.reduce(x)) or 1
        values = [_json(value) for value in y[kept]]
        series.append({"run": run, "samples": samples, "x": (x[kept] // samples).tolist(), "y": values})
    finite = np.concatenate([y[np.isfinite(y)] for _, _, y in curves])
    return {
        "key": figure.metric,
        "title": figure.title,
        "unit": figure.unit,
        "note": figure.note,
        "log": not figure.share and bool(finite.min() > 0 and finite.max() / finite.min() >= LOG_AXIS_FROM),
        "series": series,
    }


def _digits(value: float) -> float:
    """Four of them are more than a screen shows."""
    return float(f"{value:.4g}")


def _json(value: float) -> float | None:
    """None for what JSON has no word for."""
    return _digits(value) if math.isfinite(value) else None
