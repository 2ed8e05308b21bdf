"""What became of each attempt at an element: stages/<stage>.<element>.attempts.jsonl.

A line when an attempt begins and one when it ends. A begin without an end, and nobody who holds the element's lock, is
an attempt that vanished: killed with -9, out of memory, its machine gone.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.files import full_disk_named

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
    _append(file, {"attempt": attempt.number, "event": "begin", "time": attempt.began_at, **line})
    return attempt


def end_attempt(file: Path, attempt: Attempt, status: Status, exit_status: int | None, reason: str) -> None:
    """Note how it ended."""
    outcome = {"status": status, "exit_status": exit_status, "reason": reason[-REASON_CHARACTERS:]}
    line = {"host": attempt.host, "pid": attempt.pid, "job": attempt.job}
    _append(file, {"attempt": attempt.number, "event": "end", "time": time.time(), **line, **outcome})


def read_attempts(file: Path) -> list[Attempt]:
    """All attempts, the last one last; none if there is no file. Lines that a kill tore are passed over."""
    attempts: dict[int, Attempt] = {}
    for line in _lines(file):
        if line["event"] == "begin":
            attempts[line["attempt"]] = Attempt(line["attempt"], line["time"], line["host"], line["pid"], line["job"])
        elif (begun := attempts.get(line["attempt"])) is not None:
            attempts[begun.number] = Attempt(
                begun.number,
                begun.began_at,
                begun.host,
                begun.pid,
                begun.job,
                line["time"],
                line["status"],
                line["exit_status"],
                line["reason"],
            )
    return list(attempts.values())


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _append(file: Path, line: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_named(file), open(file, "a+b") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            torn = stream.read(1) != b"\n"
        else:
            torn = False
        stream.write((b"\n" if torn else b"") + json.dumps(line, ensure_ascii=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
