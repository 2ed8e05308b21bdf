"""The charts of a report, each as a PNG of its own and as an SVG that takes the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_prep.outcomes import OK
from data_prep.report.facts import CorpusFacts, SampleFacts

_COLOURS = {
    "#1d5fa6": "--accent",
    "#b5502a": "--second",
    "#565d66": "--muted",
    "#dfe2e6": "--line",
    "#8b929b": "--grey",
}
ACCENT, SECOND, MUTED, LINE, GREY = _COLOURS
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": MUTED,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


@dataclass(frozen=True)
class Chart:
    """key: name of its file. description: for those who cannot see it. svg: an <svg> element."""

    key: str
    title: str
    unit: str
    description: str
    png: bytes
    svg: str


def draw(facts: CorpusFacts) -> list[Chart]:
    """The charts that there is anything for."""
    charts = []
    with matplotlib.rc_context(_STYLE):
        if facts.outcomes:
            charts.append(_outcomes(facts.outcomes))
        if facts.throughput:
            charts.append(_throughput(facts))
        if facts.sample:
            charts += _samples(facts.sample)
    return charts


def _outcomes(outcomes: dict[str, int]) -> Chart:
    ordered = sorted(outcomes.items(), key=lambda entry: entry[1])[-12:]
    figure, axes = _figure()
    colours = [ACCENT if cause == OK else SECOND for cause, _ in ordered]
    axes.barh([cause.replace("_", " ") for cause, _ in ordered], [rows for _, rows in ordered], color=colours)
    axes.set_xscale("symlog", linthresh=1)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    largest = ", ".join(f"{cause.replace('_', ' ')} {rows:,}" for cause, rows in reversed(ordered[-4:]))
    return _chart(figure, "outcomes", "Outcomes", "rows, logarithmic", f"Rows by outcome; the largest: {largest}")


def _throughput(facts: CorpusFacts) -> Chart:
    assert facts.throughput is not None
    rate = facts.throughput
    total = rate.seconds * len(rate.per_second)
    unit, scale = ("hours", 3600) if total > 7200 else ("minutes", 60) if total > 300 else ("seconds", 1)
    x = np.arange(len(rate.per_second) + 1) * rate.seconds / scale
    figure, axes = _figure()
    axes.stairs(rate.per_second, x, color=GREY, label="rows asked for")
    axes.stairs(rate.ok_per_second, x, color=ACCENT, fill=True, alpha=0.35, label="images")
    peak = max(rate.per_second)
    axes.set_ylim(top=1.3 * peak)  # room for the legend
    axes.set_xlabel(f"{unit} since the first shard began")
    axes.legend(frameon=False, loc="upper right", labelcolor=MUTED)
    words = f"Rows per second over {total / scale:.3g} {unit}, at most {peak:,.0f}"
    return _chart(figure, "throughput", "Throughput", "rows per second", words)


def _samples(sample: SampleFacts) -> list[Chart]:
    charts = []
    sides = [min(pair) for pair in zip(sample.original_width, sample.original_height, strict=False)]
    kept = [min(pair) for pair in zip(sample.width, sample.height, strict=False)]
    if kept:
        charts.append(
            _histogram("sizes", "Sizes", "shorter side, pixels", {"as served": sides, "as kept": kept}, log=True)
        )
    aspects = [w / h for w, h in zip(sample.width, sample.height, strict=False) if h]
    if aspects:
        charts.append(_histogram("aspects", "Aspect ratios", "width / height", {"": aspects}, log=True))
    charts.append(_histogram("captions", "Captions", "characters", {"": sample.caption_length}, log=True))
    kilobytes = [size / 1000 for size in sample.image_bytes]
    charts.append(_histogram("bytes", "Bytes", "kilobytes per image", {"": kilobytes}, log=True))
    return charts


def _histogram(key: str, title: str, unit: str, series: dict[str, Sequence[float]], log: bool) -> Chart:
    every = np.concatenate([np.asarray(values, dtype=np.float64) for values in series.values() if len(values)])
    every = every[every > 0] if log else every
    low, high = (float(every.min()), float(every.max())) if len(every) else (1.0, 2.0)
    if low == high:
        low, high = low / 1.5, high * 1.5
    bins = np.geomspace(low, high, 41) if log else np.linspace(low, high, 41)
    figure, axes = _figure()
    for (label, values), colour in zip(series.items(), (GREY, ACCENT) if len(series) > 1 else (ACCENT,), strict=False):
        axes.hist(values, bins.tolist(), color=colour, alpha=0.6, label=label)
    if log:
        axes.set_xscale("log")
        _plain_ticks(axes, low, high)
    axes.set_xlabel(unit)
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=MUTED)
    median = float(np.median(every)) if len(every) else 0.0
    words = f"{title}: {unit} from {low:.3g} to {high:.3g}, half of them below {median:.3g}"
    return _chart(figure, key, title, f"samples by {unit}", words)


def _plain_ticks(axes: Axes, low: float, high: float) -> None:
    """Numbers as people write them: 1, 2, 5, 10, ... over decades, and evenly spaced ones within one."""
    decades = [m * 10.0**e for e in range(-3, 10) for m in (1, 2, 5)]
    ticks = decades if high / low > 10 else [float(tick) for tick in MaxNLocator(6).tick_values(low, high)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    ticks = ticks[:: 1 + len(ticks) // 8]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.2, 2.6), layout="constrained")
    return figure, figure.subplots()


def _chart(figure: Figure, key: str, title: str, unit: str, description: str) -> Chart:
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    figure.savefig(png, format="png", dpi=150, facecolor="white")
    return Chart(key, title, unit, description, png.getvalue(), _for_page(svg.getvalue(), key))


def _for_page(svg: str, key: str) -> str:
    """The <svg> element, in the page's colours, with identifiers that no other chart has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|url\(#|href="#)', rf"\1{key}-", svg)
    for colour, name in _COLOURS.items():
        svg = svg.replace(colour, f"var({name})")
    return re.sub(r'(<svg .*?)width="[^"]*" height="[^"]*"', r"\1", svg, count=1, flags=re.DOTALL)
