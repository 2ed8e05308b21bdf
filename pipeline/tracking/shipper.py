"""`python -m pipeline.tracking.shipper SPOOL URI EXPERIMENT RUN_ID CLOSE_SECONDS`: what MlflowTracker starts.

Ships the spool as it grows. Standard input is a pipe from the trainer: the word on it is the status to close
the run with; its end without a word means that the trainer was killed. Exit status 0: everything arrived.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import get_args

from pipeline.tracking.base import Status
from pipeline.tracking.mlflow import MlflowRuns
from pipeline.tracking.shipping import Shipment, sole_shipper

_POLL_SECONDS = 1.0
_RETRY_SECONDS = 30.0  # longest wait between two attempts at a server that is away

_log = logging.getLogger(__name__)


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
    with sole_shipper(Path(spool)):
        return 0 if _ship(Path(spool), uri, experiment, run_id, float(close_seconds)) else 1


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
