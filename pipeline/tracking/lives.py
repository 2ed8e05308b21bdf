"""The lives of a training run, from start to end or kill: RUN/train/lives.jsonl.

    {"event": "begin", "time", "host", "pid", "step", "samples_seen", "nodes": [host, ...], ...}
    {"event": "end", "time", "status": "finished" | "failed" | "preempted", "step", "samples_seen"}

A begin without an end, while nobody holds RUN/train/.lock, is a life that was killed.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import append_line
from pipeline.tracking.base import Status

FILE = "lives.jsonl"


class LivesTracker:
    """Notes that a life begins here, and how it ends. told: what else its beginning says, as JSON."""

    def __init__(self, folder: Path, step: int, samples_seen: int, told: Mapping[str, Any]) -> None:
        self._file = folder / FILE
        self._at = {"step": step, "samples_seen": samples_seen}
        self._begin: dict[str, Any] | None = {
            "event": "begin", "time": time.time(), "host": socket.gethostname(), "pid": os.getpid(), **self._at, **told
        }  # fmt: skip
        # A full disk: it is tried again with the next word, whose caller hears of it.
        with suppress(OSError, UserError):
            self._note_begin()

    def log(self, metrics: Mapping[str, float], step: int, samples_seen: int) -> None:
        """Raises UserError or OSError while not even the beginning can be written."""
        self._at = {"step": step, "samples_seen": samples_seen}
        self._note_begin()

    def close(self, status: Status) -> None:
        """Raises UserError or OSError if it cannot be written: then this life looks killed."""
        self._note_begin()
        append_line(self._file, {"event": "end", "time": time.time(), "status": status, **self._at})

    def _note_begin(self) -> None:
        if self._begin is not None:
            append_line(self._file, self._begin)
            self._begin = None
