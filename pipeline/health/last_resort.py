"""Deadlines that end this process though a C call keeps the interpreter lock and no thread of Python runs.

faulthandler's timer needs no lock, but there is one per process; so all who need it have their deadline here, and the
earliest counts.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from typing import IO, NamedTuple


class _Deadline(NamedTuple):
    at: float  # of time.monotonic
    exits: bool
    file: IO[str]


_deadlines: dict[str, _Deadline] = {}
_lock = threading.Lock()


def set_deadline(owner: str, seconds: float, exits: bool = True, file: IO[str] | None = None) -> None:
    """In so many seconds the stacks of all threads go to `file` (stderr), and with `exits` the process ends, status 1.

    Replaces the owner's deadline before. One that only shows the stacks gives way to those that end the process.
    """
    with _lock:
        _deadlines[owner] = _Deadline(time.monotonic() + seconds, exits, file or sys.stderr)
        _arm()


def clear_deadline(owner: str) -> None:
    """The owner has none any more."""
    with _lock:
        _deadlines.pop(owner, None)
        _arm()


def _arm() -> None:
    if not _deadlines:
        faulthandler.cancel_dump_traceback_later()
        return
    first = min(_deadlines.values(), key=lambda deadline: (not deadline.exits, deadline.at))
    seconds = max(0.001, first.at - time.monotonic())
    faulthandler.dump_traceback_later(seconds, exit=first.exits, file=first.file)
