"""`neuclip runs`: one row per run, from three small files of each that has finished."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline import text
from pipeline.config.tree import flatten
from pipeline.errors import UserError
from pipeline.report.compare.run import Run

Row = dict[str, Any]
COLUMNS = (
    "run", "state", "objective", "corpus", "seed", "samples", "seconds", "gpu_hours", "cpu_hours", "loss",
    "average", "partial_mean", "tasks", "of", "damaged",
)  # fmt: skip


def row(run: Run) -> Row:
    """The columns; None for what the run does not have. seconds: in training steps. loss: the last.

    damaged: what is wrong with the files that were read for it.
    """
    spent, scores = run.spent, run.aggregate or {}
    columns = {
        "run": run.name,
        "state": run.state,
        "objective": run.objective,
        "corpus": run.corpus,
        "seed": run.seed,
        "samples": run.samples_seen,
        "seconds": spent.train_seconds if spent else None,
        "gpu_hours": spent.gpu_hours if spent else None,
        "cpu_hours": spent.cpu_hours if spent else None,
        "loss": run.last_loss,
        "average": scores.get("average"),
        "partial_mean": scores.get("partial_mean"),
        "tasks": scores.get("tasks"),
        "of": scores.get("of", scores.get("tasks")),
    }
    return {**columns, "damaged": "; ".join(run.read.problems) or None}


def select(runs: Sequence[Run], where: str | None, sort: str | None) -> list[Row]:
    """Rows of the runs that meet `where`, in the order of `sort`: a column or a setting, -NAME from the largest down.

    where: as of `condition`, over columns and settings. Raises UserError where either has no meaning.
    """
    rows = [row(run) for run in runs]
    settings = [dict(flatten(run.config)) for run in runs]
    names = {*COLUMNS, *(key for tree in settings for key in tree)}
    values = [{**tree, **columns} for tree, columns in zip(settings, rows, strict=True)]
    order = list(range(len(rows)))
    if where is not None:
        from pipeline.report.compare.condition import rows_that_meet  # pyarrow: half a second

        order = rows_that_meet(where, values, names)
    if sort is not None:
        key = sort.removeprefix("-")
        if key not in names:
            raise UserError(f"no column {key!r} to sort by; there are {', '.join(COLUMNS)}, and every setting")
        order.sort(key=lambda i: _sortable(values[i].get(key)), reverse=sort.startswith("-"))
        order.sort(key=lambda i: values[i].get(key) is None)  # what lacks it is last in either direction
    return [rows[i] for i in order]


def as_csv(rows: Sequence[Row]) -> str:
    """With a line of column names."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def as_json(rows: Sequence[Row]) -> str:
    """A list of objects; numbers that JSON lacks are the strings nan, inf and -inf, as in metrics.jsonl."""
    told = [{name: value if _in_json(value) else str(value) for name, value in entry.items()} for entry in rows]
    return json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False)


def as_table(rows: Sequence[Row]) -> Table:
    """For a terminal. A partial mean says of how many tasks it is; it is no average."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("state", "objective", "corpus"):
        table.add_column(name)
    for name in ("seed", "samples", "time", "GPU-hours", "loss", "average %"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in rows:
        table.add_row(*(Text(cell) for cell in _cells(entry)))
    return table


def warnings(rows: Sequence[Row]) -> list[str]:
    """A line for each run with a damaged file."""
    damaged = [entry for entry in rows if entry["damaged"]]
    return [f"{text.one_line(entry['run'])}: {text.one_line(entry['damaged'], 400)}" for entry in damaged]


def _cells(entry: Row) -> list[str]:
    names = [text.one_line(entry[name]) for name in ("run", "state", "objective", "corpus")]
    hours = text.device_hours(entry["gpu_hours"], entry["cpu_hours"])
    average = text.percent(entry["average"])
    if entry["partial_mean"] is not None:
        average = f"{text.percent(entry['partial_mean'])} partial, {entry['tasks']}/{entry['of']}"
    seed = text.MISSING if entry["seed"] is None else str(entry["seed"])
    numbers = [text.short_count(entry["samples"]), text.duration(entry["seconds"]), hours, text.number(entry["loss"])]
    return [*names, seed, *numbers, average]


def _in_json(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _sortable(value: Any) -> tuple[bool, float, str]:
    """Numbers before texts."""
    numeric = isinstance(value, int | float)
    return (not numeric, float(value) if numeric else 0.0, "" if numeric else str(value))
