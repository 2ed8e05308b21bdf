"""What RUN/results holds: scores by task and, once all are there, their average."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pipeline.run_files import SCORED
from pipeline.typed_files import Json, Reader


class Scores(NamedTuple):
    """results: of results/<task>.json, all of one model. failures: why a task has no result, by task name."""

    results: list[Json]
    failures: dict[str, str]


def read_scores(folder: Path, export: Json | None, aggregate: Json | None, read: Reader) -> Scores:
    """What `folder` (RUN/results) holds. export: model/export.json. aggregate: aggregate.json."""
    files = [path for path in sorted(folder.glob("*.json")) if path.name != "aggregate.json"]
    tasks = [task for path in files if (task := read(SCORED, path)) is not None]
    scored = [task for task in tasks if task.get("score") is not None and "checkpoint_sha256" in task]
    failures = {task["task"]: task["error"] for task in tasks if "error" in task}
    return Scores(_of_one_model(scored, aggregate, export), failures)


def _of_one_model(scored: list[Json], aggregate: Json | None, export: Json | None) -> list[Json]:
    """The results behind the average, where there is one; else those of the exported weights.

    A run that was trained on and evaluated only in part holds results of several models.
    """
    if aggregate is not None:
        weights, tasks = aggregate["checkpoint_sha256"], aggregate["scores"]
        return [r for r in scored if r["checkpoint_sha256"] == weights and r["task"] in tasks]
    return [r for r in scored if export is not None and r["checkpoint_sha256"] == export["weights_sha256"]]
