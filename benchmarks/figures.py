"""The figures of docs/method.md from benchmarks/results: run it after a study.

python benchmarks/figures.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from lab.study import RESULTS, read
from normalizer_error import CENTRE, OPTIONS
from pipeline.files import read_json

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
COLOURS = {
    "neuclip": "#0b6e4f",
    "neuclip-plus": "#c1121f",
    "openclip": "#3a5a98",
    "fastclip": "#d98324",
    "amorlip": "#8a4f9e",
    "siglip": "#6b7280",
}
plt.rcParams |= {"svg.hashsalt": "figures", "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}


def normalizer_error() -> None:
    """The error against tau, B and N, and along a run at the centre."""
    table = read_json(RESULTS / "normalizer_error.json")["table"]
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.8), layout="constrained")
    names = ("tau", "batch", "share")
    titles = ("temperature", "batch size", "share of the training images")
    for number, (axis, name, title) in enumerate(zip(axes, names, titles, strict=False)):
        for objective in OPTIONS:
            rows = [row for row in table if row["objective"] == objective and _differs_in(row, names, number)]
            rows.sort(key=lambda row: row[name])
            errors = [row["se"] or 0 for row in rows]
            _line(axis, objective, [row[name] for row in rows], [row["mean"] for row in rows], errors)
        axis.set(title=title, ylim=(0, None), xscale="linear" if name == "tau" else "log")
        axis.set_xticks(sorted({row[name] for row in table}), sorted({row[name] for row in table}))
        axis.minorticks_off()
    axes[0].set_ylabel("mean squared log-normalizer error")
    for objective, points in _curves_at_centre().items():
        _line(axes[3], objective, sorted(points), [statistics.mean(points[x]) for x in sorted(points)])
    axes[3].set(title="samples seen", ylim=(0, None))
    axes[0].legend(frameon=False)
    _save(figure, "normalizer_error")


def accuracy() -> None:
    """The average over tasks, the loss and tau against samples, and the average against seconds."""
    curves = read_json(RESULTS / "accuracy.json")["curves"]
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.8), layout="constrained")
    panels = (("samples", "average"), ("seconds", "average"), ("samples", "loss"), ("samples", "tau"))
    for axis, (x, y) in zip(axes, panels, strict=True):
        for objective, points in curves.items():
            _line(axis, objective, [p[x] for p in points], [p[y] for p in points])
        axis.set(xlabel=x, title={"average": "average of the tasks, %"}.get(y, y))
    axes[0].legend(frameon=False)
    _save(figure, "accuracy")


def _differs_in(row: dict[str, Any], names: tuple[str, ...], allowed: int) -> bool:
    return all(row[name] == CENTRE[i] for i, name in enumerate(names) if i != allowed)


def _curves_at_centre() -> dict[str, dict[int, list[float]]]:
    tau, batch_size, share = CENTRE
    curves: dict[str, dict[int, list[float]]] = {}
    for result in read(RESULTS / "normalizer_error.jsonl").values():
        trial = result["trial"]
        setting = trial["temperature"]["init"], trial.get("batch_size", 64), trial.get("share", 1.0)
        if setting == (tau, batch_size, share):
            for point in result["curve"]:
                curves.setdefault(trial["objective"], {}).setdefault(point["samples"], []).append(point["mse"])
    return curves


def _line(axis: Axes, objective: str, x: list[Any], y: list[float], errors: list[float] | None = None) -> None:
    axis.errorbar(x, y, yerr=errors, label=objective, color=COLOURS[objective], marker="o", markersize=3, capsize=2)


def _save(figure: Any, name: str) -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
    print(FIGURES / f"{name}.svg")


DRAWN: dict[str, Callable[[], None]] = {"normalizer_error.json": normalizer_error, "accuracy.json": accuracy}


def main() -> None:
    for needed, draw in DRAWN.items():
        if (RESULTS / needed).is_file():
            draw()
        else:
            print(f"{RESULTS / needed} is not there yet: run its benchmark")


if __name__ == "__main__":
    main()
