"""`neuclip watch`: one training run on the terminal, from its own files, so from any machine that sees them."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline import text
from pipeline.report.compare.run import Run
from pipeline.report.curves.figures import thin_points
from pipeline.time_left import recent_rate, seconds_left
from pipeline.tracking.jsonl import Point, iterate_points
from pipeline.tracking.names import METRICS

REFRESH_SECONDS = 2
MESSAGES = 5
TAIL_BYTES = 200_000  # of a log that is searched for messages
CURVES = ("train/loss", "npn/log_normalizer_mse", "train/tau", "train/samples_per_second")
LATEST = (
    "train/loss", "train/tau", "train/lr", "train/accuracy", "npn/log_normalizer_mse", "train/grad_norm",
)  # fmt: skip
PLOT_HEIGHT, WIDE = 9, 100
_WARNING = re.compile(r"^(?:WARNING|ERROR) [\w.]+: (.*)|^(error: .*)")


def watch(folder: Path, console: Console, once: bool = False) -> None:
    """Show the run until it ends; one frame if `once`, or where there is no terminal. Ctrl-C ends it, not the run."""
    spool = Spool(folder / "train" / "metrics.jsonl")
    run = _look(folder, spool)
    if once or not console.is_terminal:
        console.print(frame(run, console.width, time.time()))
        return

    def now_there() -> RenderableType:
        return frame(run, console.width, time.time(), console.height)

    try:
        with Live(now_there(), console=console, auto_refresh=False) as live:
            while not _ended(run):
                time.sleep(REFRESH_SECONDS)
                run = _look(folder, spool)
                live.update(now_there(), refresh=True)
    except KeyboardInterrupt:
        pass


class Spool:
    """metrics.jsonl as it grows; what was read is not read again."""

    def __init__(self, path: Path) -> None:
        self.points: list[Point] = []
        self._path = path
        self._offset = 0
        self._last = b""  # the last line that was read; it has a time in it

    def update(self) -> list[Point]:
        """Every point so far. A run that resumed has cut the file, and written on from there."""
        if not self._path.exists():
            return self.points
        if self._bytes_before(self._offset, len(self._last)) != self._last:
            self.points, self._offset, self._last = [], 0, b""
        length = len(self._last)
        for point, offset in iterate_points(self._path, self._offset):
            self.points.append(point)
            length, self._offset = offset - self._offset, offset
        self._last = self._bytes_before(self._offset, length)
        return self.points

    def _bytes_before(self, offset: int, length: int) -> bytes:
        with open(self._path, "rb") as stream:
            stream.seek(offset - length)
            return stream.read(length)


def frame(run: Run, width: int, now: float, height: int | None = None) -> RenderableType:
    """What there is to see. now: unix seconds. width, height: in cells; without a height, all curves."""
    above: list[RenderableType] = [_head(run), _progress(run, width, now)]
    below = [Text(text.one_line(message, 300), style="yellow") for message in _messages(run)]
    if run.state in ("not trained", "stopped"):
        below.append(Text(_hint(run), style="dim"))
    if run.points:
        rows = len(CURVES) if height is None else max(1, (height - len(below) - 6) // PLOT_HEIGHT)
        above += [_latest(run.points[-1]), _plots(run.points, width, rows)]
    return Group(*above, *below)


def _look(folder: Path, spool: Spool) -> Run:
    return Run(folder, folder.name, spool.update())


def _ended(run: Run) -> bool:
    return run.state not in ("training", "not trained")


def _hint(run: Run) -> str:
    if run.state == "stopped":
        return "It is not running: the command that started it goes on where it stopped."
    return "Training has not logged anything yet."


def _head(run: Run) -> Text:
    head = Text(text.one_line(run.name, 60), style="bold")
    head.append(f"  {text.one_line(run.objective)} on {text.one_line(run.corpus)}", style="not bold")
    style = {"training": "green", "failed": "red", "stopped": "yellow"}.get(run.state, "cyan")
    return head.append(f"  {run.state}", style=style)


def _progress(run: Run, width: int, now: float) -> Group:
    seen, total, points = run.samples_seen or 0, run.total_samples, run.points
    lines: list[RenderableType] = []
    if total:
        bar = Table.grid(padding=(0, 2))
        bar.add_row(ProgressBar(total, min(seen, total), width=min(40, width // 3)), Text(f"{seen / total:.1%}"))
        lines.append(bar)
    facts = [f"{text.short_count(seen)} of {text.short_count(total)} samples"]
    rate = recent_rate(points)
    if rate is not None:
        facts.append(f"{text.number(rate)} samples/s")
        if run.state == "training" and total:
            left = seconds_left(points, total, now) or 0.0
            end = datetime.fromtimestamp(now) + timedelta(seconds=left)
            facts.append(f"{text.duration(left)} left, until {end:%a %H:%M}")
    if run.spent is not None:
        facts.append(f"{text.duration(run.spent.train_seconds)} of training")
        facts += [
            f"{text.hours(hours)} {device}-hours"
            for device, hours in (("GPU", run.spent.gpu_hours), ("CPU", run.spent.cpu_hours))
            if hours
        ]
    return Group(*lines, Text("  ".join(facts)))


def _latest(point: Point) -> Text:
    line = Text(f"step {point.step:,}", style="bold")
    for name in LATEST:
        if name in point.metrics:
            line.append(f"  {METRICS[name].label} ", style="not bold dim")
            line.append(text.number(point.metrics[name]), style="not bold")
    return line


def _plots(points: Sequence[Point], width: int, rows: int) -> Columns:
    across = 2 if width >= WIDE else 1
    each = (width - 2 * (across - 1)) // across
    plots = (_plot(points, name, each) for name in CURVES)
    return Columns([plot for plot in plots if plot is not None][: rows * across], padding=(0, 2, 0, 0))


def _plot(points: Sequence[Point], metric: str, width: int) -> Text | None:
    """A curve over samples seen in braille; None where fewer than two values can be drawn."""
    from plotext import figure  # one for the whole process; cleared before each curve

    x, y = thin_points(metric, points, 2 * width)
    if len(x) < 2:
        return None
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(width, PLOT_HEIGHT)
    figure.title(METRICS[metric].label)
    figure.draw(figure.signal(x, y, marker="braille").lines(True))
    ends = [x[0], (x[0] + x[-1]) / 2, x[-1]]
    figure.ruler("x").ticks(ends, [text.short_count(value) for value in ends])
    low, high = min(y), max(y)
    if high > low:
        heights = [low, (low + high) / 2, high]
        figure.ruler("y").ticks(heights, [text.number(value) for value in heights])
    return Text.from_ansi(str(figure.build()).rstrip("\n"))


def _messages(run: Run) -> list[str]:
    """Why it failed, and what the logs of training warned of, newest last."""
    told: deque[str] = deque(maxlen=MESSAGES)
    for log in sorted((run.folder / "logs").glob("train.*.log")):
        for line in _tail(log):
            match = _WARNING.match(line)
            if match:
                told.append(match[1] or match[2])
    warned = [(p.step, p.metrics["health/warnings"]) for p in run.points if p.metrics.get("health/warnings", 0) > 0]
    if warned and not told:
        count = math.fsum(number for _, number in warned)
        told.append(f"{count:.0f} health warnings, the last by step {warned[-1][0]:,}: the log of training says which")
    if run.failure and run.failure not in told:
        told.append(f"failed: {run.failure}")
    return [*told, *run.read.problems]


def _tail(path: Path) -> list[str]:
    with open(path, "rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return stream.read().decode(errors="replace").splitlines()
