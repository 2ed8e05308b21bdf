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
import sys
import time
from pathlib import Path
from typing import Literal

from pipeline.errors import UserError
from pipeline.leaving import leave_with
from pipeline.locks import GRACE_SECONDS
from pipeline.processes import follow_parent
from pipeline.tracking.directory import root_of
from pipeline.tracking.mirror import Mirror, Sent, only_mirror

POLL_SECONDS = 1.0
RETRY_SECONDS = 30.0  # longest wait between two attempts at a server that is away
WHOLE_SECONDS = 30.0  # between two looks at everything; spools are looked at with each poll

_log = logging.getLogger(__name__)


def ship(run_dir: Path, close_seconds: float) -> bool:
    """Mirror `run_dir` until the parent ends, and then once more; returns whether all arrived within close_seconds."""
    way = _Way(run_dir)
    ended: Literal["", "closed", "killed"] = ""
    deadline = math.inf
    while time.monotonic() < deadline:
        try:
            sent = way.attempt(everything=bool(ended))
        except UserError as error:
            if ended:
                _log.warning("%s", error)
                return False
            sent = None
        if ended and sent is not None:
            # Of a killed parent the locks may be held for a moment by children that are about to notice.
            still_running = ended == "killed" and sent.running
            if not (sent.problems or still_running or _note(run_dir).exists()):
                return True
        if ended:
            time.sleep(POLL_SECONDS)
        elif ended := _last_word(way.wait_seconds):
            deadline = time.monotonic() + (close_seconds if ended == "closed" else max(close_seconds, GRACE_SECONDS))
    return False


class _Way:
    """From a run directory to MLflow, tried again and again; says once what is amiss, and once that it no longer is.

    wait_seconds: until the next attempt; longer while the server is away.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._mirror: Mirror | None = None
        self._next_whole = 0.0
        self._warned = False
        self.wait_seconds = POLL_SECONDS

    def attempt(self, everything: bool) -> Sent | None:
        """What was sent, None if the server took nothing. everything: not spools alone, whether or not that is due.

        Raises UserError while there is nothing to mirror.
        """
        try:
            return self._advance(everything)
        except UserError:
            raise
        except Exception as error:  # whatever mlflow and its databases raise
            if not self._warned:
                _log.warning("MLflow takes nothing now; it waits in %s: %s", self._run_dir, error)
            self._warned, self._next_whole = True, 0.0
            self.wait_seconds = min(2 * self.wait_seconds, RETRY_SECONDS)
            return None

    def _advance(self, everything: bool) -> Sent:
        self._mirror = self._mirror or Mirror(self._run_dir)
        note, started = _note(self._run_dir), time.monotonic()
        if everything or started >= self._next_whole or note.exists():
            note.unlink(missing_ok=True)
            sent = self._mirror.advance()
            now = time.monotonic()
            self._next_whole = now + max(WHOLE_SECONDS, 20 * (now - started))
        else:
            sent = self._mirror.advance_points()
        for problem in sent.problems if not self._warned else ():
            _log.warning("MLflow at %s: %s", self._mirror.uri, problem)
        if self._warned and not sent.problems:
            _log.warning("MLflow at %s is back", self._mirror.uri)
        self._warned = bool(sent.problems)
        self.wait_seconds = POLL_SECONDS
        return sent


def _last_word(seconds: float) -> Literal["", "closed", "killed"]:
    """What the parent's end looks like, waited for so long; "" while it goes on."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return ""
    return "closed" if os.read(sys.stdin.fileno(), 64) else "killed"


def _main(run: str, close_seconds: str) -> int:
    logging.basicConfig(format="%(message)s")
    follow_parent(niceness=10)
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
    leave_with(lambda: _main(*sys.argv[1:]))
