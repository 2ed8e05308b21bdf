"""One readable line per log point on the terminal, in bold and dim where there is one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import IO

import click

from pipeline.tracking.base import EVALUATION, Status
from pipeline.tracking.names import METRICS

# What is worth a place in the line, in this order. The rest is in metrics.jsonl.
_SHOWN = (
    "train/loss", "train/tau", "train/lr", "train/grad_norm", "npn/log_normalizer_mse", "train/samples_per_second",
)  # fmt: skip


class ConsoleTracker:
    """Prints progress, the metrics that people watch, and when the run will end.

    total_steps: of the whole run. start_step: done before this process, whose own rate tells the time left.
    """

    def __init__(self, total_steps: int, start_step: int = 0, stream: IO[str] | None = None) -> None:
        self._total_steps = total_steps
        self._start_step = start_step
        self._started = time.monotonic()
        self._stream = stream or sys.stdout
        # Looked at once: a line is written within a training step.
        self._colored = self._stream.isatty() and "NO_COLOR" not in os.environ
        self._labels = {name: self._dim(f"  {METRICS[name].label} ") for name in _SHOWN}

    def log(self, metrics: Mapping[str, float], step: int, samples_seen: int) -> None:
        width = len(str(self._total_steps))
        parts = [
            self._styled(f"step {step:>{width}}/{self._total_steps}", bold=True),
            self._dim(f"  samples {samples_seen:,}"),
        ]
        for name, label in self._labels.items():
            if name in metrics:
                parts += (label, format(metrics[name], METRICS[name].form))
        scores = [name for name in metrics if name.startswith(EVALUATION)]
        for name in scores:
            parts += (self._dim(f"  {name} "), f"{metrics[name]:.4f}")
        if not scores:  # they are of an earlier step
            parts.append(self._dim(f"  left {self._left(step)}"))
        self._say("".join(parts))

    def close(self, status: Status) -> None:
        seconds = timedelta(seconds=round(time.monotonic() - self._started))
        self._say(f"training {status} after {seconds}")

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _left(self, step: int) -> str:
        done = step - self._start_step
        if done <= 0:
            return "unknown"
        rate = (time.monotonic() - self._started) / done
        return str(timedelta(seconds=round(rate * max(0, self._total_steps - step))))

    def _dim(self, text: str) -> str:
        return self._styled(text, dim=True)

    def _styled(self, text: str, **style: bool) -> str:
        return click.style(text, **style) if self._colored else text
