"""One process at a time: advisory file locks that vanish with their holder, however it dies.

Lock files stay behind; only the kernel's lock on them counts. (Shared file systems must support flock: Lustre wants
`-o flock`.)
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`, or raise UserError that says who holds it. what: the thing, for the message."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise UserError(
                f"{what} is in use by {holder}: two processes on it would tear each other's files. "
                "Wait for it, or end it first."
            ) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield


@contextmanager
def taking_turns(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, after whoever holds it now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
