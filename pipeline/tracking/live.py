"""The shipper as its parent sees it: started, and at the end waited for, a little.

A process, not a thread: importing mlflow and talking to it is Python code, which would take the interpreter's lock from
the training loop, for seconds at the start.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.config.schema import TrackingConfig
from pipeline.locks import is_held
from pipeline.tracking.base import Status
from pipeline.tracking.directory import lock_of

CLOSE_SECONDS = 30.0

_log = logging.getLogger(__name__)


class Shipper:
    """Has a run directory mirrored to MLflow while the caller works there (a Tracker, for the trainer's sake).

    close_seconds: how long `close` waits for the rest to arrive; what has not by then stays for `neuclip sync`.
    """

    def __init__(self, run_dir: Path, close_seconds: float = CLOSE_SECONDS) -> None:
        self._run_dir = run_dir
        self._close_seconds = close_seconds
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.tracking.shipper", str(run_dir), str(close_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )

    def log(self, metrics: Mapping[str, float], step: int, samples_seen: int) -> None:
        """Nothing to do: the shipper reads the spool. Raises RuntimeError if the shipper is gone."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the way to MLflow ended with exit status {self._process.returncode}")

    def close(self, status: Status) -> None:
        """All is written. Raises RuntimeError if not everything arrived in time."""
        try:
            self._process.communicate(b"closed", timeout=self._close_seconds + 1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode != 0:
            raise RuntimeError(f"not everything reached MLflow; `neuclip sync {self._run_dir}` sends the rest")


def is_mirrored(run_dir: Path) -> bool:
    """Whether some process is mirroring `run_dir` now."""
    return is_held(lock_of(run_dir))


@contextmanager
def mirrored(run_dir: Path, tracking: TrackingConfig) -> Iterator[None]:
    """Mirror `run_dir` to MLflow while the block runs; whatever MLflow does, the block goes on (contract 7).

    Take locks of the directory inside the block: whoever holds one counts as running.
    """
    if not tracking.mlflow:
        yield
        return
    shipper = Shipper(run_dir, CLOSE_SECONDS)
    try:
        yield
    finally:
        try:
            shipper.close("finished")
        except RuntimeError as error:
            _log.warning("%s", error)
