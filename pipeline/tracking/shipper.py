"""`python -m pipeline.tracking.shipper RUN CLOSE_SECONDS`: mirrors a run directory while its parent works there.

Standard input is a pipe from the parent (`live`): the word `closed` on it says that all is written; its end without
that word, that the parent was killed. Exit status 0: everything arrived, or another process sees to it: whoever ends
while another one ships leaves a note, RUN/.mlflow.look, and that one does not go before it has looked at everything.
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
from typing import Literal

from pipeline.errors import UserError
from pipeline.locks import GRACE_SECONDS
from pipeline.tracking.directory import root_of
from pipeline.tracking.mirror import Mirror, only_mirror

POLL_SECONDS = 1.0
RETRY_SECONDS = 30.0  # longest wait between two attempts at a server that is away
WHOLE_SECONDS = 30.0  # between two looks at everything; spools are looked at with each poll

_log = logging.getLogger(__name__)


def ship(run_dir: Path, close_seconds: float) -> bool:
    """Mirror `run_dir` until the parent ends, and then once more; returns whether all arrived within close_seconds."""
    mirror: Mirror | None = None
    ended: Literal["", "closed", "killed"] = ""
    deadline, next_whole, wait, warned = math.inf, 0.0, POLL_SECONDS, False
    while time.monotonic() < deadline:
        try:
            mirror = mirror or Mirror(run_dir)
            started = time.monotonic()
            whole = bool(ended) or started >= next_whole or _note(run_dir).exists()
            if whole:
                _note(run_dir).unlink(missing_ok=True)
            sent = mirror.advance() if whole else mirror.advance_points()
            if whole:
                next_whole = time.monotonic() + max(WHOLE_SECONDS, 20 * (time.monotonic() - started))
            for problem in sent.problems if not warned else ():
                _log.warning("MLflow at %s: %s", mirror.uri, problem)
            if warned and not sent.problems:
                _log.warning("MLflow at %s is back", mirror.uri)
            warned = bool(sent.problems)
            # Of a killed parent the locks may be held for a moment by children that are about to notice.
            still_running = ended == "killed" and sent.running
            if ended and not (sent.problems or still_running or _note(run_dir).exists()):
                return True
            wait = POLL_SECONDS
        except UserError as error:
            if ended:
                _log.warning("%s", error)
                return False
        except Exception as error:
            if not warned:
                _log.warning("MLflow takes nothing now; it waits in %s: %s", run_dir, error)
            wait, warned, next_whole = min(2 * wait, RETRY_SECONDS), True, 0.0
        if ended:
            time.sleep(POLL_SECONDS)
        elif ended := _last_word(wait):
            deadline = time.monotonic() + (close_seconds if ended == "closed" else max(close_seconds, GRACE_SECONDS))
    return False


def _last_word(seconds: float) -> Literal["", "closed", "killed"]:
    """What the parent's end looks like, waited for so long; "" while it goes on."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return ""
    return "closed" if os.read(sys.stdin.fileno(), 64) else "killed"


def _main(run: str, close_seconds: str) -> int:
    logging.basicConfig(format="%(message)s")
    # Signals go to whole process groups, but the shipper ends after its parent. It yields the CPU to it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)
    run_dir, over = Path(run), False
    while True:
        try:
            with only_mirror(run_dir):
                arrived = ship(run_dir, float(close_seconds))
        except UserError:  # another process ships; if it ends, this one goes on
            if over:
                return 0
            if over := bool(_last_word(POLL_SECONDS)):
                _note(run_dir).touch()
            continue
        if not _note(run_dir).exists():  # else it came when the other one was about to go
            return 0 if arrived else 1


def _note(run_dir: Path) -> Path:
    return root_of(run_dir) / ".mlflow.look"


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
