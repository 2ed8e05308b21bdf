"""One number for a model: the mean of the main metrics of all expected tasks, or none at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import UserError
from pipeline.evaluation.results import Result, error_path, is_current, read_result, task_stamp
from pipeline.evaluation.task_folder import open_task_folder
from pipeline.evaluation.tasks import Task, load_tasks, select_tasks
from pipeline.files import read_json, write_json

AGGREGATE_FILE = "aggregate.json"
_MODEL_KEYS = ("model", "checkpoint_sha256", "model_config_sha256", "precision")


def aggregate(out: Path, data: Path, tasks: Sequence[str] | Literal["all"] = "all") -> dict[str, Any]:
    """Write and return `out/aggregate.json`.

    {model, checkpoint_sha256, model_config_sha256, precision, tasks: n, average,
     scores: {task: {title, score, chance, main_metric}}}

    tasks: the ones expected, of `data/tasks.yaml`. Those that are not in the average have to have a result too.
    Raises UserError that names every task whose result is missing, or is of another definition, data or
    evaluation code than today's, or if the results are of several models; no aggregate.json is left then.
    """
    path = out / AGGREGATE_FILE
    path.unlink(missing_ok=True)
    expected = select_tasks(load_tasks(data), tasks)
    results: dict[str, Result] = {}
    problems: dict[str, str] = {}
    for name, task in expected.items():
        result = read_result(out, name)
        if result is None:
            problems[name] = _why_missing(out, name)
        elif not _is_of_today(result, data, name, task):
            problems[name] = "stale: task, data or evaluation code changed since"
        else:
            results[name] = result
    if problems:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in problems.items())
        raise UserError(
            f"no average: {len(problems)} of {len(expected)} results in {out} cannot be used. "
            f"Run `neuclip evaluate` again.{reasons}"
        )
    averaged = {name: result for name, result in results.items() if expected[name].in_average}
    if not averaged:
        raise UserError(f"no average: {', '.join(expected)} count in none")
    summary = {
        **_one_model(results),
        "tasks": len(averaged),
        "average": sum(result["score"] for result in averaged.values()) / len(averaged),
        "scores": {
            name: {key: result[key] for key in ("title", "score", "chance", "main_metric")}
            for name, result in averaged.items()
        },
    }
    write_json(path, summary)
    return summary


def _why_missing(out: Path, task: str) -> str:
    path = error_path(out, task)
    return f"failed: {read_json(path)['error']}" if path.is_file() else "missing"


def _is_of_today(result: Result, data: Path, name: str, task: Task) -> bool:
    try:
        return is_current(result, task_stamp(task, open_task_folder(data, name, task)))
    except UserError:  # the data is gone
        return False


def _one_model(results: dict[str, Result]) -> dict[str, str]:
    models: dict[tuple[str, ...], list[str]] = {}
    for name, result in results.items():
        models.setdefault(tuple(result[key] for key in _MODEL_KEYS[1:]), []).append(name)
    if len(models) > 1:
        groups = "".join(
            f"\n  checkpoint {key[0][:12]}, {key[-1]}: {', '.join(names)}" for key, names in models.items()
        )
        raise UserError(f"no average: the results are of {len(models)} models. Run `neuclip evaluate` again.{groups}")
    first = next(iter(results.values()))
    return {key: first[key] for key in _MODEL_KEYS}
