"""Commands as child processes: started, watched by their logs, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from pipeline.launch.stop_signal import held
from pipeline.processes import die_with_parent

END_SECONDS = 30  # for a child to end by itself


def start(command: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a command that writes to `log` and dies with this process, however that dies.

    In a session of its own: Ctrl-C at a terminal reaches only who was started there, and is passed on once.
    """
    with held():
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )


def end(processes: Sequence[subprocess.Popen[bytes]], seconds: float = END_SECONDS) -> None:
    """Ask all of them to end, and kill those that do not within so many seconds."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_line(log: Path, size: int = 2000) -> str:
    """The last line of a log that says something, or '', also where there is no log."""
    if not log.exists():
        return ""
    with open(log, "rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
        lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith("$ ")), "")
