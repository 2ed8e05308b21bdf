"""One process at a time: advisory file locks that vanish with their holder, however it dies.

Lock files stay behind; only the kernel's lock on them counts. (Shared file systems must support flock: Lustre wants
`-o flock`.)
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import UserError
from pipeline.files import full_disk_named

GRACE_SECONDS = 15  # forked children of a killed holder live on for up to 5 s
PROBE_SECONDS = 0.5  # `is_held` holds a free lock for a moment


class InUse(UserError):
    """Another process holds the lock."""


@contextmanager
def exclusive(path: Path, what: str, patience_seconds: float = 0) -> Iterator[None]:
    """Hold the lock file `path`, or raise InUse that says who holds it. what: the thing, for the message.

    patience_seconds: for which a holder that lives is waited for.
    """
    began = time.monotonic()
    with _opened(path) as stream:
        while not _try_lock(stream):
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            # A child that a dead holder forked still has the lock, and is about to notice.
            if time.monotonic() - began < (GRACE_SECONDS if _is_dead(holder) else max(PROBE_SECONDS, patience_seconds)):
                time.sleep(0.1)
                continue
            raise InUse(
                f"{what} is in use by {holder}: two processes on it would tear each other's files. "
                "Wait for it, or end it first."
            )
        with full_disk_named(path):
            stream.truncate(0)
            stream.write(_name(os.getpid()))
            stream.flush()
        yield


def _opened(path: Path) -> IO[str]:
    with full_disk_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a+", encoding="utf-8")


def _try_lock(stream: IO[str]) -> bool:
    try:
        _flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _flock(stream: IO[str], operation: int) -> None:
    try:
        fcntl.flock(stream, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        raise UserError(
            f"{stream.name} cannot be locked ({error.strerror}): the file system has to support flock between all "
            "machines that use it (Lustre: mounted with -o flock). Put the folder on one that does."
        ) from error


def _name(pid: int) -> str:
    return f"process {pid} on {socket.gethostname()}"


def _is_dead(holder: str) -> bool:
    """Whether `holder` names a process of this machine that is gone."""
    pid = holder.split()[1] if holder.startswith("process ") else ""
    return pid.isdigit() and holder == _name(int(pid)) and not Path(f"/proc/{pid}").exists()


@contextmanager
def taking_turns(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, after whoever holds it now."""
    with _opened(path) as stream:
        _flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold the lock file `path` together with others; waits for whoever holds it alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as stream:
        _flock(stream, fcntl.LOCK_SH)
        yield


def is_held(path: Path) -> bool:
    """Whether somebody, this process included, holds the lock file `path`; nobody does where there is none."""
    try:
        # A colleague may look at the run without the right to write; NFS locks what is open for writing alone.
        with open(path, "r+" if os.access(path, os.W_OK) else "r") as stream:
            return not _try_lock(stream)
    except FileNotFoundError:
        return False
