"""What a person sees while a run goes on: a live table of stages, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pipeline.launch.stages import Stage

REFRESH_PER_SECOND = 5


@dataclass
class _Row:
    elements: int
    done: int = 0
    state: str = "waiting"
    started: float = 0.0
    seconds: float = 0.0
    line: str = ""


class Display:
    """The stages of one run, from `start` to `finish` each; a context manager."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._console = Console(stderr=True)
        self._rows = {stage.name: _Row(stage.elements) for stage in stages}
        self._spinner = Spinner("dots")
        self._live = Live(
            get_renderable=self._table,
            console=self._console,
            refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def skip(self, stage: str) -> None:
        """All of the stage was done before."""
        row = self._rows[stage]
        row.state, row.done = "done before", row.elements
        self._say(f"{stage}: done before")

    def start(self, stage: str, todo: list[int]) -> None:
        """Work on the elements `todo` begins."""
        row = self._rows[stage]
        row.state, row.started, row.done = "running", time.monotonic(), row.elements - len(todo)
        rest = f" ({len(todo)} of {row.elements} elements)" if row.elements > 1 else ""
        self._say(f"{stage}: started{rest}")

    def update(self, stage: str, line: str) -> None:
        """The last line of a running element's log."""
        row = self._rows[stage]
        row.line, row.seconds = line, time.monotonic() - row.started

    def advance(self, stage: str) -> None:
        """One more element is done."""
        self._rows[stage].done += 1

    def finish(self, stage: str) -> None:
        """The stage is done."""
        self._end(stage, "done")

    def stop(self, stage: str) -> None:
        """The stage was asked to stop, and can go on."""
        self._end(stage, "stopped")

    def fail(self, stage: str) -> None:
        """The stage ended without being done."""
        self._end(stage, "failed")

    def _end(self, stage: str, state: str) -> None:
        row = self._rows[stage]
        row.state, row.line, row.seconds = state, "", time.monotonic() - row.started
        self._say(f"{stage}: {state} in {row.seconds:.1f} s")

    def _say(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line, highlight=False)

    def _table(self) -> Group:
        table = Table.grid(padding=(0, 2))
        marks: dict[str, RenderableType] = {
            "running": self._spinner,
            "done": "[green]✓",
            "done before": "[dim]✓",
            "stopped": "[yellow]◼",
            "failed": "[red]✗",
        }
        for name, row in self._rows.items():
            elements = ProgressBar(row.elements, row.done, width=16) if row.elements > 1 else ""
            seconds = f"{row.seconds:.0f} s" if row.seconds else ""
            style = "bold" if row.state == "running" else "dim" if row.state in ("waiting", "done before") else ""
            table.add_row(marks.get(row.state, " "), Text(name, style=style), elements, seconds)
        line = next((row.line for row in self._rows.values() if row.state == "running"), "")
        return Group(table, Text(line, style="dim", overflow="ellipsis", no_wrap=True))


@contextmanager
def task_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yields `report(task, done, total)`: a bar per task on a terminal, a line per finished task elsewhere."""
    with _bars(MofNCompleteColumn(), lambda total: f"{total} images") as report:
        yield report


@contextmanager
def bytes_progress() -> Iterator[Callable[[str, int, int], None]]:
    """The same, of bytes."""
    with _bars(DownloadColumn(), lambda total: f"{total / 1e6:.1f} MB") as report:
        yield report


@contextmanager
def _bars(count: ProgressColumn, said: Callable[[int], str]) -> Iterator[Callable[[str, int, int], None]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def report(task: str, done: int, total: int) -> None:
            if task not in bars:
                bars[task] = progress.add_task(task, total=total)
            progress.update(bars[task], completed=done)
            if done == total and not console.is_terminal:
                console.print(f"{task}: {said(total)}", highlight=False)

        yield report
