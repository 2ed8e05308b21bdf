"""A comparison on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline import text
from pipeline.report.compare.comparison import Comparison
from pipeline.report.compare.estimates import Estimate
from pipeline.report.compare.groups import mean_over, mean_time, shown
from pipeline.report.compare.scores import Line
from pipeline.report.compare.words import summary

MOST_COLUMNS = 8  # groups or runs beside each other; more are for the page


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Groups, what differs, scores with the best of each in bold and starred, and what that comes to."""
    console.print(_groups(comparison))
    console.print()
    console.print(_settings(comparison) if comparison.settings else Text("The recipes do not differ.", style="dim"))
    if comparison.scores.tasks and len(comparison.groups) <= MOST_COLUMNS:
        console.print()
        console.print(_scores(comparison))
    console.print()
    console.print(Text(" ".join(text.one_line(sentence, 400) for sentence in summary(comparison))))
    for note in comparison.notes:
        console.print(Text(text.one_line(note, 400), style="yellow"))
    for run in comparison.runs:
        if run.missing:
            lacks = text.one_line("; ".join(run.missing), 400)
            console.print(Text(f"{text.one_line(run.name)}: {lacks}", style="yellow"))


def _groups(comparison: Comparison) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("group", overflow="fold")
    for heading in ("runs", "average %", "best in", "samples", "time", "GPU-hours"):
        table.add_column(heading, justify="right", no_wrap=True)
    overall, tasks = comparison.scores.overall, comparison.scores.tasks
    for group in comparison.groups:
        cell = overall.cells[group.number] if overall else None
        best = overall is not None and overall.best == group.number
        wins = sum(line.best == group.number for line in tasks)
        spent = mean_time(group)
        table.add_row(
            Text(text.one_line(group.label), style="bold" if best else ""),
            str(len(group.runs)),
            _score(cell, best),
            f"{wins}/{len(tasks)}" if cell else text.MISSING,
            text.short_count(mean_over(group, lambda run: run.samples_seen)),
            text.duration(spent.train_seconds),
            text.device_hours(spent.gpu_hours, spent.cpu_hours),
        )
    return table


def _settings(comparison: Comparison) -> Table:
    runs = comparison.runs
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("what differs", overflow="fold")
    if len(runs) > MOST_COLUMNS:
        table.add_column("values", overflow="fold")
        for setting in comparison.settings:
            values = dict.fromkeys(shown(value) for value in setting.values)
            table.add_row(Text(text.one_line(setting.key)), Text(text.one_line(", ".join(values), 200)))
        return table
    for run in runs:
        table.add_column(Text(text.one_line(run.name, 30)), overflow="fold")
    for setting in comparison.settings:
        table.add_row(Text(text.one_line(setting.key)), *(Text(shown(value)) for value in setting.values))
    return table


def _scores(comparison: Comparison) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("task, %", overflow="fold")
    for group in comparison.groups:
        table.add_column(Text(text.one_line(group.label, 30)), justify="right", overflow="fold")
    overall = comparison.scores.overall
    for line in comparison.scores.tasks:
        _add(table, line)
    if overall is not None:
        table.add_section()
        _add(table, overall)
    return table


def _add(table: Table, line: Line) -> None:
    cells = [_score(cell, i == line.best) for i, cell in enumerate(line.cells)]
    table.add_row(Text(text.one_line(line.title, 60)), *cells)


def _score(cell: Estimate | None, best: bool) -> Text:
    """The mean and, where there are several seeds, its standard error."""
    if cell is None:
        return Text(text.MISSING)
    error = f" ± {text.percent(cell.standard_error)}" if cell.runs > 1 else ""
    return Text(f"{text.percent(cell.mean)}{error}{' *' if best else '  '}", style="bold" if best else "")
