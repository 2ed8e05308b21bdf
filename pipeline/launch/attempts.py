"""What became of each attempt at an element: stages/<stage>.<element>.attempts.jsonl.

A line when an attempt begins and one when it ends. A begin without an end, and nobody who holds the element's lock, is
an attempt that vanished: killed with -9, out of memory, its machine gone.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.files import append_line
from pipeline.run_files import ATTEMPT

Status = Literal["done", "failed", "stopped", "blocked"]
REASON_CHARACTERS = 4000


@dataclass(frozen=True)
class Attempt:
    """One attempt. number: from 1. job: what the backend says of it. status: None while, or if, it has no end.

    began_at, ended_at: unix seconds. exit_status: of the command; negative: killed by that signal.
    """

    number: int
    began_at: float
    host: str
    pid: int
    job: Mapping[str, Any] | None = None
    ended_at: float | None = None
    status: Status | None = None
    exit_status: int | None = None
    reason: str = ""


def begin_attempt(file: Path, job: Mapping[str, Any] | None) -> Attempt:
    """Note that an attempt begins here and now. The caller holds the element's lock."""
    attempt = Attempt(len(read_attempts(file)) + 1, time.time(), socket.gethostname(), os.getpid(), job)
    line = {"host": attempt.host, "pid": attempt.pid, "job": job}
    append_line(file, {"attempt": attempt.number, "event": "begin", "time": attempt.began_at, **line})
    return attempt


def end_attempt(file: Path, attempt: Attempt, status: Status, exit_status: int | None, reason: str) -> None:
    """Note how it ended."""
    outcome = {"status": status, "exit_status": exit_status, "reason": reason[-REASON_CHARACTERS:]}
    line = {"host": attempt.host, "pid": attempt.pid, "job": attempt.job}
    append_line(file, {"attempt": attempt.number, "event": "end", "time": time.time(), **line, **outcome})


def read_attempts(file: Path) -> list[Attempt]:
    """All attempts, the last one last; none if there is no file. Lines that a kill tore are passed over."""
    attempts: dict[int, Attempt] = {}
    for line in ATTEMPT.lines(file):
        number, at = line["attempt"], line["time"]
        if line["event"] == "begin":
            attempts[number] = Attempt(number, at, line["host"], line["pid"], line["job"])
        elif number in attempts and "status" in line:
            exit_status, reason = line.get("exit_status"), line.get("reason", "")
            attempts[number] = replace(
                attempts[number], ended_at=at, status=line["status"], exit_status=exit_status, reason=reason
            )
    return list(attempts.values())
