"""What one worker of an array has done: OUT/workers/<rank>-of-<world size>.json, there once all of its share is done.

{rank, world_size, seconds, tasks: {task: {parts: {number: sha256 of its record}, of: parts, **stamp}}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.parts import Part
from pipeline.evaluation.records import part_path
from pipeline.evaluation.results import Stamp, current_result
from pipeline.files import read_object, sha256_file, write_json

WORKERS = "workers"


def worker_path(out: Path, rank: int, world_size: int) -> Path:
    """Where it says that a worker is done."""
    return out / WORKERS / f"{rank}-of-{world_size}.json"


def write_worker(
    out: Path,
    rank: int,
    world_size: int,
    share: Mapping[str, Sequence[Part]],
    stamps: Mapping[str, Stamp],
    seconds: float,
) -> None:
    """Write it, unless it says the same already. share, stamps: by task. seconds: that the worker took."""
    tasks = {
        task: {**stamps[task], "parts": _digests(out, parts, stamps[task]), "of": parts[0].of}
        for task, parts in share.items()
    }
    done = {"rank": rank, "world_size": world_size, "tasks": tasks}
    path = worker_path(out, rank, world_size)
    if _without_seconds(path) != done:
        write_json(path, {**done, "seconds": round(seconds, 3)})


def _digests(out: Path, parts: Sequence[Part], stamp: Stamp) -> dict[str, str]:
    result = current_result(out, parts[0].task, stamp)
    if result is None:
        return {str(part.number): sha256_file(part_path(out, part)) for part in parts}
    digests = dict(enumerate(result["parts"]))
    mine = {part.number for part in parts} if len(digests) == parts[0].of else set(digests)  # it was cut in another way
    return {str(number): digest for number, digest in digests.items() if number in mine}


def _without_seconds(path: Path) -> dict[str, Any]:
    return {key: value for key, value in (read_object(path) or {}).items() if key != "seconds"}
