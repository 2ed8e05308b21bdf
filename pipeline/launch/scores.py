"""What an evaluation came to, as a table on the terminal."""

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
        table.add_row("partial mean, no average", count, f"{summary['partial_mean']:.4f}", style="yellow")
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for name, reason in summary.get("left_out", {}).items():
        if reason != "not chosen":
            console.print(f"not counted: {name}: {reason}", style="yellow", highlight=False, markup=False)
