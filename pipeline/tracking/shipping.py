"""From the spool (metrics.jsonl) to MLflow: a process of its own, exactly once, whatever the server does.

A process, not a thread: importing mlflow and talking to it is Python code, which would take the interpreter's
lock from the training loop, for seconds at the start. It reads the spool as it grows. Its standard input is a
pipe from the trainer: the word on it is the status to close the run with; its end without a word means that
the trainer was killed.

What the run has is asked of the server (the last step of each metric) at the start and after every failure,
and not kept in a file: so the answer is right even if the server took a batch and its reply was lost. A point
is a metric's name and its samples_seen; steps that a resumed run passes again are not sent twice.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from pipeline.tracking.base import Status
from pipeline.tracking.jsonl import iterate_points
from pipeline.tracking.mlflow import METRICS_PER_BATCH, MetricPoint, MlflowRuns, valid_name

_POLL_SECONDS = 1.0
_RETRY_SECONDS = 30.0  # longest wait between two attempts at a server that is away

_log = logging.getLogger("pipeline.tracking")


class MlflowTracker:
    """Has the spool of a run shipped to one MLflow run while the run goes on.

    spool: what a JsonlTracker of the same run writes; build that one first.
    run_id: of `MlflowRuns.open`.
    close_seconds: how long `close` waits for the rest to arrive; what has not by then stays in the spool, for
        `replay`.
    """

    def __init__(
        self, spool: Path, uri: str, experiment: str, run_id: str, close_seconds: float = 30
    ) -> None:
        arguments = [str(spool), uri, experiment, run_id, str(close_seconds)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
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
    with _sole_shipper(spool):
        return Shipment(spool, MlflowRuns(uri, experiment), run_id).advance()


@contextmanager
def _sole_shipper(spool: Path) -> Iterator[None]:
    """Two shippers of one spool (one whose trainer was just killed, and its successor) take turns."""
    with open(spool.with_suffix(".lock"), "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _ship(spool: Path, uri: str, experiment: str, run_id: str, close_seconds: float) -> bool:
    """Ship until the trainer ends, then close the run; returns whether everything arrived in time."""
    shipment: Shipment | None = None
    status: Status | None = None
    deadline = math.inf
    wait = _POLL_SECONDS
    while time.monotonic() < deadline:
        try:
            if shipment is None:
                runs = MlflowRuns(uri, experiment)
                runs.resume(run_id)
                shipment = Shipment(spool, runs, run_id)
            shipment.advance()
            if status is not None:
                runs.close(run_id, status)
                return True
            if wait > _POLL_SECONDS:
                _log.warning("MLflow at %s is back", uri)
            wait = _POLL_SECONDS
        except Exception as error:
            if wait == _POLL_SECONDS:
                _log.warning("MLflow at %s takes no metrics; they wait in %s: %s", uri, spool, error)
            wait = min(2 * wait, _RETRY_SECONDS)
        if status is not None:
            time.sleep(_POLL_SECONDS)
        elif (status := _last_word(wait)) is not None:
            deadline = time.monotonic() + close_seconds
    return False


def _last_word(seconds: float) -> Status | None:
    """The trainer's last word, waited for so long: None while it goes on, "failed" if it was killed."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return None
    word = os.read(sys.stdin.fileno(), 64).decode()
    return next((status for status in get_args(Status) if status == word), "failed")


def _main(spool: str, uri: str, experiment: str, run_id: str, close_seconds: str) -> int:
    logging.basicConfig(format="%(message)s")
    # Signals go to whole process groups, but the shipper ends after its trainer. It yields the CPU to it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)
    with _sole_shipper(Path(spool)):
        return 0 if _ship(Path(spool), uri, experiment, run_id, float(close_seconds)) else 1


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
