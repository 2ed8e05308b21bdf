"""`neuclip runs`: one row per run, from three small files of each that has finished."""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from rich.table import Table
from rich.text import Text

from pipeline.errors import UserError
from pipeline.report.compare import text
from pipeline.report.compare.run import Run
from pipeline.time_spent import TimeSpent
from pipeline.tracking.mlflow import flatten
from pipeline.where import column_name, compile_where

Row = dict[str, Any]
COLUMNS = (
    "run", "state", "objective", "corpus", "seed", "samples", "seconds", "gpu_hours", "cpu_hours", "loss",
    "average", "partial_mean", "tasks", "of",
)  # fmt: skip


def row(run: Run) -> Row:
    """The columns; None for what the run does not have. seconds: in training steps. loss: the last."""
    spent, scores = run.spent, run.aggregate or {}
    trained = run.trained or {}
    return {
        "run": run.name,
        "state": run.state,
        "objective": run.objective,
        "corpus": run.corpus,
        "seed": run.seed,
        "samples": run.samples_seen,
        "seconds": spent.train_seconds if spent else None,
        "gpu_hours": spent.gpu_hours if spent else None,
        "cpu_hours": spent.cpu_hours if spent else None,
        "loss": trained.get("final_loss") if trained else _last_loss(run),
        "average": scores.get("average"),
        "partial_mean": scores.get("partial_mean"),
        "tasks": scores.get("tasks"),
        "of": scores.get("of", scores.get("tasks")),
    }


def select(runs: Sequence[Run], where: str | None, sort: str | None) -> list[Row]:
    """Rows of the runs that meet `where`, in the order of `sort`: a column or a setting, -NAME from the largest down.

    where: as of pipeline.where, over columns and settings (`train.global_batch_size`); `=` also compares, and a word
    that is neither a column nor a setting is a text. Raises UserError where either has no meaning.
    """
    rows = [row(run) for run in runs]
    settings = [dict(flatten(run.config)) for run in runs]
    names = {*COLUMNS, *(key for tree in settings for key in tree)}
    values = [{**tree, **columns} for tree, columns in zip(settings, rows, strict=True)]
    order = list(range(len(rows)))
    if where is not None:
        condition = compile_where(_in_python(where, names), dotted=True)
        table = pa.table({name: _column([value.get(name) for value in values]) for name in condition.columns})
        # A condition may read no column at all; it is then asked of as many rows without any.
        order = [i for i, holds in zip(order, condition(table), strict=True) if holds] if condition.columns else order
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


def _cells(entry: Row) -> list[str]:
    names = [text.one_line(entry[name]) for name in ("run", "state", "objective", "corpus")]
    hours = text.device_hours(TimeSpent(entry["seconds"] or 0.0, entry["gpu_hours"], entry["cpu_hours"]))
    average = text.percent(entry["average"])
    if entry["partial_mean"] is not None:
        average = f"{text.percent(entry['partial_mean'])} partial, {entry['tasks']}/{entry['of']}"
    seed = text.MISSING if entry["seed"] is None else str(entry["seed"])
    numbers = [text.short_count(entry["samples"]), text.duration(entry["seconds"]), hours, text.number(entry["loss"])]
    return [*names, seed, *numbers, average]


def _in_json(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _last_loss(run: Run) -> float | None:
    return next((p.metrics["train/loss"] for p in reversed(run.points) if "train/loss" in p.metrics), None)


def _sortable(value: Any) -> tuple[bool, float, str]:
    """Numbers before texts."""
    numeric = isinstance(value, int | float)
    return (not numeric, float(value) if numeric else 0.0, "" if numeric else str(value))


def _column(values: list[Any]) -> pa.Array:
    """As truths or numbers where all are, else as texts."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in known):
        return pa.array(values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return pa.array(values, pa.float64())
    return pa.array([None if value is None else str(value) for value in values])


def _in_python(where: str, names: set[str]) -> str:
    """`objective=neuclip and train.steps>9` as pipeline.where reads it."""
    parts = re.split(r"""("[^"]*"|'[^']*')""", where)
    parts[::2] = [re.sub(r"(?<![<>=!])=(?!=)", "==", part) for part in parts[::2]]
    try:
        tree = ast.parse("".join(parts).strip(), mode="eval")
    except SyntaxError:
        return where  # and its error is told there
    return ast.unparse(_Words(where, names).visit(tree))


class _Words(ast.NodeTransformer):
    """A word on the right of a comparison that is neither a column nor a setting is a text."""

    def __init__(self, where: str, names: set[str]) -> None:
        self._where, self._names = where, names

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        left = column_name(node.left)
        if left is not None and left not in self._names:
            raise UserError(
                f"the condition {self._where!r}: no run has {left!r}; columns are {', '.join(COLUMNS)}, and every "
                "setting of a recipe by its dotted name"
            )
        node.comparators = [self._text(side) for side in node.comparators]
        return node

    def _text(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            node.elts = [self._text(element) for element in node.elts]
            return node
        word = column_name(node)
        return node if word is None or word in self._names else ast.Constant(word)
