"""What an evaluation, or the comparison of two, came to, as a table on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_scores(summary: Mapping[str, Any]) -> None:
    """Tasks, groups, and the average, or the partial mean and what is not in it. summary: as in aggregate.json."""
    table = Table("task", "metric", box=None, title=f"{summary['model']}, {summary['precision']}", title_justify="left")
    for heading in ("score", "chance"):
        table.add_column(heading, justify="right")
    for name, entry in summary["scores"].items():
        table.add_row(name, entry["main_metric"], f"{entry['score']:.4f}", f"{entry['chance']:.4f}")
    table.add_section()
    for group, entry in summary["groups"].items():
        table.add_row(group, f"mean of {entry['tasks']}", f"{entry['mean']:.4f}", style="cyan")
    if "average" in summary:
        table.add_row("average", f"mean of {summary['tasks']}", f"{summary['average']:.4f}", style="bold")
    else:
        count = f"mean of {summary['tasks']} of {summary['of']}"
        mean = summary["partial_mean"]
        table.add_row("partial mean, no average", count, "" if mean is None else f"{mean:.4f}", style="yellow")
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for name, reason in summary.get("left_out", {}).items():
        if reason != "not chosen":
            console.print(f"not counted: {name}: {reason}", style="yellow", highlight=False, markup=False)


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Differences of B from A; in bold where the interval is on one side of 0. comparison: as `compare` returns it."""
    sides = [f"{side.upper()}: {comparison[side]['model']} in {comparison[side]['results']}" for side in "ab"]
    table = Table("task", "metric", box=None, title="\n".join(sides), title_justify="left")
    for heading in ("A", "B", "B - A", "95 % interval"):
        table.add_column(heading, justify="right")
    for name, row in comparison["tasks"].items():
        table.add_row(name, row["main_metric"], *_numbers(row), style=_style(row))
    if (mean := comparison["mean"]) is not None:
        table.add_section()
        table.add_row("mean", f"of {mean['tasks']}", *_numbers(mean), style=_style(mean))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for name, reason in comparison["left_out"].items():
        console.print(f"left out: {name}: {reason}", style="yellow", highlight=False, markup=False)


def _numbers(row: Mapping[str, Any]) -> list[str]:
    signed = [f"{row[key]:+.4f}" for key in ("difference", "low", "high")]
    return [f"{row['a']:.4f}", f"{row['b']:.4f}", signed[0], f"{signed[1]} to {signed[2]}"]


def _style(row: Mapping[str, Any]) -> str:
    return "bold" if row["low"] > 0 or row["high"] < 0 else ""
