"""The figures of a comparison as PNGs, for whoever keeps them: MLflow, a talk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter

from pipeline.files import atomic_open
from pipeline.report.compare.comparison import Comparison
from pipeline.report.compare.estimates import Estimate
from pipeline.report.compare.groups import Group
from pipeline.report.compare.scores import Line
from pipeline.report.curves.figures import figures
from pipeline.report.curves.section import look
from pipeline.text import one_line

HUES = ("#1f6fd0", "#c9540a", "#58026f", "#128a70", "#98276a", "#33302a")  # --g0 to --g5 of curves.css on paper
GREY = "#8b929b"
MOST_NAMES = 12  # in a legend


class _Dot(NamedTuple):
    """A share or a difference of shares, and how far its bar reaches."""

    row: int
    value: float
    low: float | None
    high: float | None


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write what there is of it as FOLDER/<name>.png; returns the paths.

    curve-<metric>: over samples seen, a line per run. scores: by task, a dot per group, ± its standard error over
    seeds. differences: to the baseline, with 95 % intervals.
    """
    drawn = {f"curve-{fig['key'].replace('/', '-')}": _curves(comparison, fig) for fig in figures(comparison.runs)}
    if comparison.scores.tasks:
        drawn["scores"] = _scores(comparison)
        if len(comparison.groups) > 1:
            drawn["differences"] = _differences(comparison)
    for name, canvas in drawn.items():
        with atomic_open(folder / f"{name}.png") as stream:
            canvas.savefig(stream, format="png")
    return [folder / f"{name}.png" for name in drawn]


def _curves(comparison: Comparison, figure: dict[str, Any]) -> Canvas:
    """figure: of `curves.figures`."""
    canvas, axes = _blank(4.5)
    for series in figure["series"]:
        run = comparison.runs[series["run"]]
        group = comparison.group_of(run)
        x, y = np.array(series["x"]) * series["samples"], np.array(series["y"], dtype=float)
        style = _dashes(group, group.runs.index(run))
        axes.plot(x, y, color=_hue(group), linestyle=style, linewidth=1.5, label=_in_legend(run.name))
    axes.set(title=figure["title"], xlabel="samples seen", ylabel=figure["unit"])
    axes.set_yscale("log" if figure["log"] else "linear")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _name(axes, len(comparison.runs))
    return canvas


def _scores(comparison: Comparison) -> Canvas:
    lines = _lines(comparison)
    canvas, axes = _of_tasks(lines)
    known = [(100 * line.chance, row) for row, line in enumerate(lines) if line.chance is not None]
    if known:
        axes.scatter(*zip(*known, strict=True), marker="|", color=GREY, label="chance")
    for group in comparison.groups:
        cells = [(row, line.cells[group.number]) for row, line in enumerate(lines)]
        _draw(axes, comparison, group, [_Dot(row, *_with_error(cell)) for row, cell in cells if cell is not None])
    axes.set(title="Scores by task", xlabel="%")
    _name(axes, len(comparison.groups))
    return canvas


def _differences(comparison: Comparison) -> Canvas:
    lines, baseline = _lines(comparison), comparison.baseline
    canvas, axes = _of_tasks(lines)
    axes.axvline(0, color=GREY, linewidth=1)
    for group in comparison.groups:
        gaps = [(row, line.differences(baseline)[group.number]) for row, line in enumerate(lines)]
        dots = [_Dot(row, gap.value, gap.low, gap.high) for row, gap in gaps if gap is not None]
        if group.number != baseline:
            _draw(axes, comparison, group, dots)
    ours = [group.label for group in comparison.groups if group.number != baseline]
    what = f"{ours[0]} minus" if len(ours) == 1 else "Differences to"
    title = f"{what} {comparison.groups[baseline].label}, 95 % intervals"
    axes.set(title=_plain(title), xlabel="percentage points")
    _name(axes, len(ours))
    return canvas


def _with_error(cell: Estimate) -> tuple[float, float, float]:
    """The mean and its standard error to either side, where it is one over seeds."""
    error = (cell.standard_error or 0.0) if cell.runs > 1 else 0.0
    return cell.mean, cell.mean - error, cell.mean + error


def _lines(comparison: Comparison) -> list[Line]:
    """Tasks and below them their mean, from the bottom of a picture upward."""
    overall = comparison.scores.overall
    return [*([overall] if overall else []), *reversed(comparison.scores.tasks)]


def _draw(axes: Axes, comparison: Comparison, group: Group, dots: Sequence[_Dot]) -> None:
    """A group's dots, beside those of the others in each row."""
    aside = 0.6 * ((group.number + 0.5) / len(comparison.groups) - 0.5)
    values = [100 * dot.value for dot in dots]
    below = [0 if dot.low is None else 100 * (dot.value - dot.low) for dot in dots]
    above = [0 if dot.high is None else 100 * (dot.high - dot.value) for dot in dots]
    axes.errorbar(
        values, [dot.row - aside for dot in dots], xerr=[below, above], fmt="o", markersize=4, elinewidth=1,
        color=_hue(group), label=_in_legend(group.label),
    )  # fmt: skip


def _of_tasks(lines: Sequence[Line]) -> tuple[Canvas, Axes]:
    canvas, axes = _blank(1.6 + 0.28 * len(lines))
    axes.set_yticks(range(len(lines)), [_plain(line.title) for line in lines])
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.tick_params(axis="y", length=0)
    return canvas, axes


def _blank(height: float) -> tuple[Canvas, Axes]:
    """height: in inches of 120 pixels."""
    canvas = Canvas(figsize=(8, height), dpi=120, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return canvas, axes


def _name(axes: Axes, entries: int) -> None:
    if 1 < entries <= MOST_NAMES:
        axes.legend(frameon=False, fontsize="small")


def _hue(group: Group) -> str:
    return HUES[group.number % len(HUES)]


def _dashes(group: Group, place: int) -> Any:
    dash = look(group.number, place).dash
    return (0, tuple(length / 2 for length in dash)) if dash else "solid"


def _plain(name: str) -> str:
    """As text: matplotlib takes $ for mathematics."""
    return one_line(name, 60).replace("$", r"\$")


def _in_legend(name: str) -> str:
    """matplotlib leaves out a name that begins with _."""
    return f" {_plain(name)}"
