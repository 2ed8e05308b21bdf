"""Where a run stands, on one screen: a table of its stages, what failed and why, and what to type next."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.launch.children import last_line
from pipeline.launch.run import Run
from pipeline.launch.state import ElementState, RunState, StageState
from pipeline.stopping import STOP_FILE
from pipeline.text import duration

SHOWN = 5  # elements of a stage that are told of
COLUMNS = ("done", "running", "queued", "failed", "waiting", "attempt", "on", "elapsed", "expected end")
COLOURS = {"failed": "red", "stopped": "yellow", "blocked": "yellow", "running": "green"}


def print_status(run: Run, state: RunState) -> None:
    """The table, the elements that one should know of, and the next command."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table("stage", box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "on" else "right")
    for stage in state.stages:
        table.add_row(stage.name, *_cells(stage))
    console.print(table)
    for stage in state.stages:
        _print_elements(console, run, stage)
    for line in what_next(run, state):
        console.print(escape(line), soft_wrap=True)


def what_next(run: Run, state: RunState) -> list[str]:
    """What the owner of the run may want to type, as it stands."""
    root = run.paths.root
    by_state: dict[str, tuple[str, int]] = {}  # the first of each
    for stage in state.stages:
        for element in stage.not_done:
            by_state.setdefault(element.state, (stage.name, element.element))
    if state.done:
        return [f"All done: {root / ('compare.html' if run.paths.members else 'report.html')}"]
    lines = []
    if "running" in by_state or "queued" in by_state:
        if "running" in by_state:
            lines.append("Watch it:  neuclip logs {} {} {} --follow".format(root, *by_state["running"]))
        lines.append(f"Stop it:   touch {root / STOP_FILE}")
    if "failed" in by_state:
        lines.append("Read why:  neuclip logs {} {} {}".format(root, *by_state["failed"]))
    if state.stop:
        lines.append(f"Let it go on:  rm {root / STOP_FILE}")
    if "running" not in by_state and "queued" not in by_state:
        what = "Do what failed or is missing" if "failed" in by_state else "Go on"
        lines.append(f"{what}:  neuclip retry {root}")
    return lines


def _cells(stage: StageState) -> list[str]:
    running = [element for element in stage.not_done if element.state == "running"]
    told = running or [element for element in stage.not_done if element.attempt is not None]
    attempts = max((element.attempt.number for element in told if element.attempt), default=None)
    where = sorted({element.nodes for element in running if element.nodes})
    elapsed = max((element.seconds or 0 for element in running), default=None)
    waiting = stage.count("waiting") + stage.count("blocked") + stage.count("stopped")
    counts = (stage.count("running"), stage.count("queued"), stage.count("failed"), waiting)
    end = None if stage.seconds_left is None else datetime.now() + timedelta(seconds=stage.seconds_left)
    return [
        f"{stage.count('done')}/{stage.total}",
        *(f"[{colour}]{n}[/]" if n else "" for n, colour in zip(counts, ("green", "cyan", "red", "dim"), strict=True)),
        "" if attempts is None else str(attempts),
        ", ".join(where[:2]) + (f" and {len(where) - 2} more" if len(where) > 2 else ""),
        duration(elapsed) if elapsed is not None else _each(stage),
        "" if end is None else f"{end:%a %H:%M}",
    ]


def _each(stage: StageState) -> str:
    if stage.element_seconds is None:
        return ""
    return duration(stage.element_seconds) + (" each" if stage.total > 1 else "")


def _print_elements(console: Console, run: Run, stage: StageState) -> None:
    told = [e for e in stage.not_done if e.state in COLOURS or (e.state == "queued" and e.reason)]
    for element in told[:SHOWN]:
        head = f"[{COLOURS.get(element.state, 'cyan')}]{element.state}[/]"
        console.print(f"{escape(_name(run, stage, element))}: {head} {escape(_attempt(element))}".rstrip())
        if element.state == "running":
            line = last_line(run.paths.log(stage.name, element.element))
            lines = [line] if line else []
        else:
            lines = element.reason.splitlines()
        for line in lines:
            console.print(f"  {line}", markup=False, style="dim", overflow="ellipsis", no_wrap=True)
    if len(told) > SHOWN:
        console.print(f"and {len(told) - SHOWN} more elements of {stage.name}")


def _name(run: Run, stage: StageState, element: ElementState) -> str:
    members, of = run.paths.members, run.stage(stage.name)
    member = f" ({members[of.member_of(element.element)].name})" if members and of.per_member else ""
    return f"{stage.name} {element.element}{member}"


def _attempt(element: ElementState) -> str:
    if element.attempt is None:
        return ""
    where = f" on {element.nodes or element.attempt.host}"
    seconds = "" if element.seconds is None else f", {duration(element.seconds)}"
    return f"attempt {element.attempt.number}{where}{seconds}"
