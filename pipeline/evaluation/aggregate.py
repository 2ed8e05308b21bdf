"""One number for a model: the mean of the main metrics of all tasks of its data, or none of that name."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

from pipeline.errors import UserError
from pipeline.evaluation.merge import merge
from pipeline.evaluation.results import (
    Result,
    current_result,
    described,
    error_path,
    read_result,
    result_path,
    task_stamp,
)
from pipeline.evaluation.task_folder import open_task_folder
from pipeline.evaluation.tasks import Task, load_tasks, select_tasks
from pipeline.files import atomic_open, write_json
from pipeline.run_files import MEASURED, SCORED

AGGREGATE_FILE = "aggregate.json"
DATACOMP_FILE = "eval_results.jsonl"
_STALE = "stale: task, data or evaluation code changed since"
_MODEL_KEYS = ("model", "checkpoint_sha256", "model_config_sha256", "precision")


def aggregate(
    out: Path, data: Path, tasks: Sequence[str] | Literal["all"] = "all", partial: bool = False
) -> dict[str, Any]:
    """Write and return `out/aggregate.json`; where all tasks have a result, `out/eval_results.jsonl` too.

    {model, checkpoint_sha256, model_config_sha256, precision, tasks: n, average,
     groups: {group: {tasks: n, mean}}, scores: {task: {title, score, chance, main_metric}}}

    tasks: the ones expected, of `data/tasks.yaml`. Those that are not in the average have to have a result too.
    partial: take the results that can be used, and leave out the others.
    Unless all tasks of the average are there, the mean is called `partial_mean` (None of no task), and {of: n,
    left_out: {task: reason}} say what is not in it. A group has a mean if all of its tasks are there. Tasks of the
    group `own` count in no other mean.

    A task whose parts are all there but were not merged has its result made first.

    Raises UserError that names every task whose result is missing, or is of another definition, data or
    evaluation code than today's, or if the results are of several models; neither file is left then.
    """
    withdraw(out)
    known = load_tasks(data)
    expected = select_tasks(known, tasks)
    results: dict[str, Result] = {}
    problems: dict[str, str] = {}
    for name, task in expected.items():
        try:
            results[name] = _result_of_today(out, data, name, task)
        except UserError as error:
            problems[name] = str(error)
    if problems and not partial:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in problems.items())
        raise UserError(
            f"no average: {len(problems)} of {len(expected)} results in {out} cannot be used. "
            f"Run `neuclip evaluate` again.{reasons}"
        )
    scored = {name: result for name, result in results.items() if known[name].in_average}
    if not scored:
        raise UserError(f"no average: {', '.join(results) or f'no result in {out} that'} count in none")
    summary = {
        **_one_model(results),
        **_mean_by_its_name(scored, known, problems),
        "groups": _group_means(scored, known),
        "scores": {
            name: {key: result[key] for key in ("title", "score", "chance", "main_metric")}
            for name, result in scored.items()
        },
    }
    if set(results) == set(known):
        _write_as_datacomp(out / DATACOMP_FILE, results)
    write_json(out / AGGREGATE_FILE, summary)
    return summary


def withdraw(out: Path) -> None:
    """Remove what is no longer of the results beside it. Raises UserError where results cannot be written to `out`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()
        for name in (AGGREGATE_FILE, DATACOMP_FILE):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"results cannot be written to {out} ({error.strerror}): make that possible") from error


def _mean_by_its_name(
    scored: Mapping[str, Result], known: Mapping[str, Task], problems: Mapping[str, str]
) -> dict[str, Any]:
    averaged = [result for name, result in scored.items() if known[name].in_the_average]
    counted = {"tasks": len(averaged)}
    mean = _mean(averaged) if averaged else None
    missing = [name for name, task in known.items() if task.in_the_average and name not in scored]
    if mean is not None and not missing and not problems:
        return {**counted, "average": mean}
    left_out = {name: problems.get(name, "not chosen") for name in known if name in {*missing, *problems}}
    return {**counted, "partial_mean": mean, "of": len(averaged) + len(missing), "left_out": left_out}


def _group_means(scored: Mapping[str, Result], known: Mapping[str, Task]) -> dict[str, dict[str, Any]]:
    members: dict[str, list[str]] = {}
    for name, task in known.items():
        for group in task.groups if task.in_average else ():
            members.setdefault(group, []).append(name)
    return {
        group: {"tasks": len(names), "mean": _mean(scored[name] for name in names)}
        for group, names in members.items()
        if scored.keys() >= set(names)
    }


def _mean(results: Iterable[Result]) -> float:
    return statistics.fmean(result["score"] for result in results)


def _write_as_datacomp(path: Path, results: Mapping[str, Result]) -> None:
    """The file of the official `evaluate.py`, which its `aggregate_scores.py` reads."""
    with atomic_open(path, "w") as stream:
        for name, result in results.items():
            metrics = {**result["metrics"], "main_metric": result["score"]}
            stream.write(json.dumps({"key": name, "dataset": result["title"], "metrics": metrics}) + "\n")


def _why_missing(out: Path, task: str) -> str:
    """Raises UserError where what is there of it is damaged."""
    MEASURED.read(result_path(out, task))
    failed = SCORED.read(error_path(out, task))
    return "missing" if failed is None else f"failed: {failed.get('error') or 'it does not say why'}"


def _result_of_today(out: Path, data: Path, name: str, task: Task) -> Result:
    """Raises UserError that says why there is none."""
    result = read_result(out, name)
    try:
        folder = open_task_folder(data, name, task)
    except UserError as error:
        raise UserError(_why_missing(out, name) if result is None else f"stale: {error}") from error
    try:
        current = current_result(out, name, task_stamp(task, folder)) or merge(out, name, task, folder)
    except UserError as error:
        raise UserError(f"failed: {error}") from error
    if current is not None:
        return described(out, name, task, current)
    raise UserError(_why_missing(out, name) if result is None else _STALE)


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
