"""What each rank is doing, where the others can read it when they hang: one small file per rank.

    RUN/train/heartbeats/00000.json   {"rank": 0, "host": "n07", "pid": 4711, "step": 412, "doing": "saving", ...}

Noting what comes next sets three attributes; the watchdog's thread writes the file every few seconds. A process that
is stopped, dead, or on a machine that is gone beats no more.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

BYTES = 2048  # of a file, padded: written at once over the one before, so that a reader finds no half of it


@dataclass
class Heartbeat:
    """step: the last that ended. moves: calls of `next`, equal where ranks are at the same place.

    beats: how often the file was written. failed: why the rank ends before its time, and exit_status with what.
    """

    rank: int = 0
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    step: int = 0
    doing: str = "starting"
    moves: int = 0
    beats: int = 0
    hung: bool = False
    failed: str = ""
    exit_status: int = 0

    def next(self, doing: str, step: int) -> None:
        """Note what this rank begins, after `step` steps."""
        self.doing, self.step = doing, step
        self.moves += 1

    def write(self, folder: Path) -> None:
        """Over what the file held. Training does not depend on it, so a file that cannot be written is no error."""
        self.beats += 1
        content = json.dumps(asdict(self)).encode().ljust(BYTES)
        with suppress(OSError):
            descriptor = os.open(folder / f"{self.rank:05d}.json", os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(descriptor, content, 0)
            finally:
                os.close(descriptor)

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid}) after step {self.step}, {self.doing}"


def read_heartbeats(folder: Path, ranks: Iterable[int]) -> dict[int, Heartbeat]:
    """By rank, of those that have a readable file."""
    found = {}
    for rank in ranks:
        with suppress(OSError, ValueError, TypeError):
            found[rank] = Heartbeat(**json.loads((folder / f"{rank:05d}.json").read_bytes()))
    return found
