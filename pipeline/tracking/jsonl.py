"""metrics.jsonl: every logged point of a run on the local disk, one JSON document per line.

    {"step": 40, "samples_seen": 10240, "time": 1763740800.25, "metrics": {"train/loss": 2.81}}

step: optimizer steps done. time: unix seconds. Numbers that JSON lacks are the strings "nan", "inf", "-inf",
which `float()` reads. The file is the record that the report reads, and the spool that MLflow is fed from.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.tracking.base import EVALUATION, Status

_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)  # a point is written within a step
LATEST = 1e11  # unix seconds: the year 5138


class Point(NamedTuple):
    """One line: metrics by name, at a step. time: unix seconds."""

    step: int
    samples_seen: int
    time: float
    metrics: Mapping[str, float]


class JsonlTracker:
    """Appends points to `path`; a line is with the operating system when `log` returns.

    start_step: steps done when this process starts. Points beyond it belong to steps that will run again and
        are dropped, as is a line that was torn by a kill. 0 is a fresh start: nothing is kept.
    Raises OSError from `log` when the disk is full; the file then still ends with a whole line.
    """

    def __init__(self, path: Path, start_step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _drop_after(path, start_step)
        self._stream = open(path, "ab", buffering=0)  # noqa: SIM115

    def log(self, metrics: Mapping[str, float], step: int, samples_seen: int) -> None:
        line = _encode(Point(step, samples_seen, time.time(), metrics))
        size = os.fstat(self._stream.fileno()).st_size
        try:
            written = self._stream.write(line)
            if written != len(line):
                raise OSError(f"{self._stream.name}: only {written} of {len(line)} bytes fit on the disk")
        except OSError:
            self._stream.truncate(size)
            raise

    def close(self, status: Status) -> None:
        self._stream.close()


def read_points(path: Path) -> list[Point]:
    """Every whole line of the file; empty if there is no file."""
    return [point for point, _ in iterate_points(path)] if path.exists() else []


def last_points(path: Path, size: int = 100_000) -> list[Point]:
    """Those of the last `size` bytes of the file, which may be long; empty if there is no file."""
    if not path.exists():
        return []
    begin = max(0, path.stat().st_size - size)  # in the middle of a line, which is passed over
    return [point for point, _ in iterate_points(path, begin)]


def of_steps(points: Iterable[Point]) -> list[Point]:
    """Those that training logged of its steps: samples_seen never falls. Left out are scores of checkpoints."""
    return [point for point in points if not any(name.startswith(EVALUATION) for name in point.metrics)]


def iterate_points(path: Path, offset: int = 0) -> Iterator[tuple[Point, int]]:
    """`points_in` the file, from byte `offset` on."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        yield from points_in(stream, offset)


def points_in(lines: Iterable[bytes], offset: int = 0) -> Iterator[tuple[Point, int]]:
    """Whole lines, the first of which begins at byte `offset`, each with the offset behind it.

    A last line without its newline (being written, or torn) ends the iteration; a damaged one is skipped.
    """
    for line in lines:
        if not line.endswith(b"\n"):
            return
        offset += len(line)
        point = _decode(line)
        if point is not None:
            yield point, offset


def _drop_after(path: Path, step: int) -> None:
    """Cut the file behind its last whole line of at most `step` steps. In place: that works on a full disk."""
    end = 0
    for point, behind in iterate_points(path):
        if step == 0 or point.step > step:
            break
        end = behind
    os.truncate(path, end)


def _encode(point: Point) -> bytes:
    metrics = {name: float(x) if math.isfinite(x) else str(float(x)) for name, x in point.metrics.items()}
    document = {**point._asdict(), "metrics": metrics}
    return _ENCODER.encode(document).encode() + b"\n"


def _decode(line: bytes) -> Point | None:
    try:
        document = json.loads(line)
        metrics = {str(name): float(value) for name, value in document["metrics"].items()}
        point = Point(int(document["step"]), int(document["samples_seen"]), float(document["time"]), metrics)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    possible = 0 <= point.step < 2**63 and 0 <= point.samples_seen < 2**63 and 0 <= point.time <= LATEST
    return point if possible else None
