"""From the spool (metrics.jsonl) to MLflow: exactly once, whatever the server does, by a process of its own.

A process, not a thread: importing mlflow and talking to it is Python code, which would take the interpreter's
lock from the training loop, for seconds at the start.

What the run has is asked of the server (the last step of each metric) at the start and after every failure,
and not kept in a file: so the answer is right even if the server took a batch and its reply was lost. A point
is a metric's name and its samples_seen; steps that a resumed run passes again are not sent twice.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.locks import taking_turns
from pipeline.tracking.base import Status
from pipeline.tracking.jsonl import iterate_points
from pipeline.tracking.mlflow import METRICS_PER_BATCH, MetricPoint, MlflowRuns, valid_name


class MlflowTracker:
    """Has the spool of a run shipped to one MLflow run while the run goes on.

    spool: what a JsonlTracker of the same run writes; build that one first.
    run_id: of `MlflowRuns.open`.
    close_seconds: how long `close` waits for the rest to arrive; what has not by then stays in the spool, for
        `replay`.
    """

    def __init__(self, spool: Path, uri: str, experiment: str, run_id: str, close_seconds: float = 60) -> None:
        arguments = [str(spool), uri, experiment, run_id, str(close_seconds)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.tracking.shipper", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        self._close_seconds = close_seconds

    def log(self, metrics: Mapping[str, float], step: int, samples_seen: int) -> None:
        """Nothing to do: the shipper reads the spool. Raises RuntimeError if the shipper is gone."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the MLflow shipper ended with exit status {self._process.returncode}")

    def close(self, status: Status) -> None:
        """Close the run. Raises RuntimeError if not everything arrived in time."""
        try:
            self._process.communicate(status.encode(), timeout=self._close_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode != 0:
            raise RuntimeError("not every metric reached MLflow: the rest is in the spool")


class Shipment:
    """A spool on its way to one run."""

    def __init__(self, spool: Path, runs: MlflowRuns, run_id: str) -> None:
        self._spool = spool
        self._runs = runs
        self._run_id = run_id
        self._offset = 0
        self._last_steps: dict[str, int] | None = None  # None: ask the server

    def advance(self) -> int:
        """Send what is new in the spool; returns the number of points sent. Raises what the server raises."""
        if self._last_steps is None:
            self._last_steps = self._runs.last_steps(self._run_id)
        sent = 0
        for batch, offset in self._batches(self._last_steps):
            try:
                self._runs.log_points(self._run_id, batch)
            except Exception:
                self._last_steps = None  # taken or not: only the server knows
                raise
            self._offset = offset
            sent += len(batch)
        return sent

    def _batches(self, last_steps: dict[str, int]) -> Iterator[tuple[list[MetricPoint], int]]:
        """Points that the run lacks, as many as go into one request, and the offset behind them."""
        batch: list[MetricPoint] = []
        offset = self._offset
        for point, behind in iterate_points(self._spool, self._offset):
            new = []
            for name, value in point.metrics.items():
                key = valid_name(name)
                if point.samples_seen > last_steps.get(key, -1):
                    last_steps[key] = point.samples_seen
                    new.append(MetricPoint(key, value, point.samples_seen, point.time))
            if batch and len(batch) + len(new) > METRICS_PER_BATCH:
                yield batch, offset
                batch = []
            batch += new
            offset = behind
        yield batch, offset


def replay(spool: Path, uri: str, experiment: str, run_id: str) -> int:
    """Send what the run still lacks of its spool, exactly once; returns the number of points sent.

    Waits for a shipper of the same spool to end. Raises mlflow's MlflowException if the server is away.
    """
    with sole_shipper(spool):
        return Shipment(spool, MlflowRuns(uri, experiment), run_id).advance()


def sole_shipper(spool: Path) -> AbstractContextManager[None]:
    """One shipper at a time: that of a trainer that was just killed may still be at work."""
    return taking_turns(spool.with_suffix(".lock"))
