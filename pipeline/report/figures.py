"""The training curves as data; the page's script draws them with plotly.js in the reader's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.tracking.jsonl import Point

LOG_AXIS_FROM = 50.0  # ratio of largest to smallest value from which a positive curve gets a log axis


@dataclass(frozen=True)
class Curve:
    """One figure: metrics over samples seen. series: (metric, label). error: metric of the standard error."""

    key: str
    title: str
    unit: str
    series: tuple[tuple[str, str], ...]
    error: str | None = None
    percent: bool = False


CURVES = (
    Curve("loss", "Loss", "training objective", (("train/loss", "loss"),)),
    Curve("tau", "Temperature", "tau", (("train/tau", "tau"),)),
    Curve(
        "log_normalizer",
        "Log-normalizer error",
        "mean square, ± 2 standard errors",
        (("npn/log_normalizer_mse", "error"),),
        error="npn/log_normalizer_mse_se",
    ),
    Curve("throughput", "Throughput", "samples per second", (("train/samples_per_second", "samples/s"),)),
    Curve("gradient", "Gradient norm", "before clipping", (("train/grad_norm", "norm"),)),
    Curve(
        "time",
        "Where the time goes",
        "share of a step",
        (("npn/share", "NPN"), ("data/wait_share", "waiting for data")),
        percent=True,
    ),
)


def training_figures(points: Sequence[Point]) -> list[dict[str, Any]]:
    """A JSON-able figure for every curve that the run has metrics of.

    {key, title, unit, percent, log, first, last, series: [{label, x, y, low?, high?}]}: x in samples seen; a
    value that is not finite is null and leaves a gap. first, last: the first series' finite ends.
    """
    figures = (_figure(curve, points) for curve in CURVES)
    return [figure for figure in figures if figure is not None]


def _figure(curve: Curve, points: Sequence[Point]) -> dict[str, Any] | None:
    series = [_series(metric, label, curve.error, points) for metric, label in curve.series]
    drawn = [one for one in series if any(y is not None for y in one["y"])]
    if not drawn:
        return None
    values = [y for one in drawn for y in one["y"] if y is not None]
    ends = [y for y in drawn[0]["y"] if y is not None]
    return {
        "key": curve.key,
        "title": curve.title,
        "unit": curve.unit,
        "percent": curve.percent,
        "log": min(values) > 0 and max(values) / min(values) >= LOG_AXIS_FROM,
        "first": ends[0],
        "last": ends[-1],
        "series": drawn,
    }


def _series(metric: str, label: str, error: str | None, points: Sequence[Point]) -> dict[str, Any]:
    logged = [point for point in points if metric in point.metrics]
    y = [_finite(point.metrics[metric]) for point in logged]
    series: dict[str, Any] = {"label": label, "x": [point.samples_seen for point in logged], "y": y}
    if error is not None and y:
        spread = [_finite(2 * point.metrics.get(error, 0.0)) or 0.0 for point in logged]
        # A mean of squares is not negative, and a log axis has no zero.
        series["low"] = [None if v is None else max(v - s, v / 10) for v, s in zip(y, spread, strict=True)]
        series["high"] = [None if v is None else v + s for v, s in zip(y, spread, strict=True)]
    return series


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
