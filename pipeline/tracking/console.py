"""One readable line per log point on the terminal, in bold and dim where there is one."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import IO

import click

from pipeline.tracking.base import Status

# (metric, label, format): what is worth a place in the line, in this order. The rest is in metrics.jsonl.
_SHOWN = (
    ("train/loss", "loss", "{:.4f}"),
    ("train/tau", "tau", "{:.4f}"),
    ("train/lr", "lr", "{:.2e}"),
    ("train/grad_norm", "grad", "{:.3f}"),
    ("npn/log_normalizer_mse", "log-normalizer error", "{:.4f}"),
    ("train/samples_per_second", "samples/s", "{:,.0f}"),
)

_EVALUATION = "eval/"


class ConsoleTracker:
    """Prints progress, the metrics that people watch, and when the run will end.

    total_steps: of the whole run. start_step: done before this process, whose own rate tells the time left.
    """

    def __init__(self, total_steps: int, start_step: int = 0, stream: IO[str] | None = None) -> None:
        self._total_steps = total_steps
        self._start_step = start_step
        self._started = time.monotonic()
        self._stream = stream

    def log(self, metrics: Mapping[str, float], step: int, samples_seen: int) -> None:
        width = len(str(self._total_steps))
        parts = [
            click.style(f"step {step:>{width}}/{self._total_steps}", bold=True),
            _dim(f"  samples {samples_seen:,}"),
        ]
        for name, label, form in _SHOWN:
            if name in metrics:
                parts += (_dim(f"  {label} "), form.format(metrics[name]))
        scores = [name for name in metrics if name.startswith(_EVALUATION)]
        for name in scores:
            parts += (_dim(f"  {name} "), f"{metrics[name]:.4f}")
        if not scores:  # they are of an earlier step
            parts.append(_dim(f"  left {self._left(step)}"))
        self._say("".join(parts))

    def close(self, status: Status) -> None:
        seconds = timedelta(seconds=round(time.monotonic() - self._started))
        self._say(f"training {status} after {seconds}")

    def _say(self, line: str) -> None:
        click.echo(line, file=self._stream, color=False if "NO_COLOR" in os.environ else None)

    def _left(self, step: int) -> str:
        done = step - self._start_step
        if done <= 0:
            return "unknown"
        rate = (time.monotonic() - self._started) / done
        return str(timedelta(seconds=round(rate * max(0, self._total_steps - step))))


def _dim(text: str) -> str:
    return click.style(text, dim=True)
