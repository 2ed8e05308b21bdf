"""Two folders of results, task by task: how far apart, and how sure that is (`bootstrap`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.config.loader import parse
from pipeline.errors import UserError
from pipeline.evaluation.bootstrap import differences
from pipeline.evaluation.kinds import KINDS
from pipeline.evaluation.records import read_record, samples_path
from pipeline.evaluation.results import Result
from pipeline.evaluation.task_run import Rows, row_count
from pipeline.evaluation.tasks import RESERVED, Task, file_name
from pipeline.files import fingerprint
from pipeline.run_files import MEASURED

RESAMPLES = 1000
CONFIDENCE = 0.95


class _Side(NamedTuple):
    """One model on one task. rows: of its samples."""

    result: Result
    task: Task
    rows: Rows

    @property
    def is_of_the_result(self) -> bool:
        """Whether the rows are as many as the result's samples, and come to its score."""
        try:
            score = KINDS[self.task.kind].metrics(self.task, self.rows)[str(self.task.main_metric)]
        except (LookupError, RuntimeError, TypeError, ValueError):  # columns of another task
            return False
        return score == self.result["score"] and row_count(self.rows) == self.result["n"]


def compare(
    a: Path,
    b: Path,
    tasks: Sequence[str] | Literal["all"] = "all",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """What results of model B have more than those of A: differences of main metrics, with intervals of 95 %.

    {a, b: {results, model, checkpoint_sha256, precision}, resamples, seed,
     tasks: {task: {title, main_metric, n, a, b, difference, low, high}},
     mean: {tasks: n, a, b, difference, low, high}, left_out: {task: reason}}

    mean: over the tasks that count in an average, which its interval takes as given; None where there is none.
    Raises UserError that names the tasks whose results are of other data or another definition in A than in B, that
    have no record of their samples, or that were chosen and are not in both.
    """
    damaged: dict[str, str] = {}
    known = [_results(folder, damaged) for folder in (a, b)]
    names = list(dict.fromkeys([*known[0], *known[1]]) if tasks == "all" else dict.fromkeys(tasks))
    left_out = {name: reason for name in names if (reason := _why_not(name, known, (a, b), damaged))}
    if tasks != "all" and left_out:
        raise UserError(f"cannot compare:{_listed(left_out)}")
    compared = [name for name in names if name not in left_out]
    different = {name: reason for name in compared if (reason := _difference(*(results[name] for results in known)))}
    if different:
        raise UserError(f"{a} and {b} are not of the same tasks:{_listed(different)}")
    if not compared:
        raise UserError(f"{a} and {b} have no task in common:{_listed({**damaged, **left_out})}")
    nameless = damaged.keys() - {file_name(name) for name in names} if tasks == "all" else set()
    scores: dict[str, dict[str, Any]] = {}
    drawn: dict[str, np.ndarray] = {}
    for name in compared:
        sides = [_side(folder, results[name]) for folder, results in zip((a, b), known, strict=True)]
        task, first = sides[0].task, sides[0].result
        drawn[name] = differences(task, sides[0].rows, sides[1].rows, resamples, _random(seed, name))
        values = [side.result["score"] for side in sides]
        scores[name] = {
            "title": task.title,
            "main_metric": task.main_metric,
            "n": first["n"],
            **_row(values, drawn[name]),
        }
        if not task.in_average:
            drawn.pop(name)
    return {
        **{
            side: {"results": str(folder), **_model(results, compared)}
            for side, folder, results in zip("ab", (a, b), known, strict=True)
        },
        "resamples": resamples,
        "seed": seed,
        "tasks": scores,
        "mean": _mean(scores, drawn),
        "left_out": {**left_out, **{name: damaged[name] for name in sorted(nameless)}},
    }


def _results(folder: Path, damaged: dict[str, str]) -> dict[str, Result]:
    """The results of a folder, by task. damaged: gets what is wrong with those that cannot be used, by file name."""
    results: dict[str, Result] = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem == RESERVED or path.name.endswith(".error.json"):
            continue
        try:
            result = MEASURED.read(path)
        except UserError as error:
            damaged[path.stem] = str(error)
        else:
            results |= {result["task"]: result} if result is not None else {}
    if not results and not damaged:
        raise UserError(f"{folder} holds no results of `neuclip evaluate`")
    return results


def _why_not(
    name: str, known: Sequence[dict[str, Result]], folders: Sequence[Path], damaged: dict[str, str]
) -> str | None:
    if file_name(name) in damaged:
        return damaged[file_name(name)]
    missing = [str(folder) for folder, results in zip(folders, known, strict=True) if name not in results]
    if missing:
        return f"no result in {' or '.join(missing)}"
    return "no main metric" if known[0][name]["main_metric"] is None else None


def _difference(a: Result, b: Result) -> str | None:
    what = {"data_fingerprint": "other data", "task_hash": "another definition of the task"}
    reasons = [reason for key, reason in what.items() if a[key] != b[key]]
    return " and ".join(reasons) or None


def _side(folder: Path, result: Result) -> _Side:
    path = samples_path(folder, result["task"])
    record = read_record(path)
    again = f"make it with `neuclip evaluate --force --tasks {result['task']} --out {folder}`"
    if record is None:
        raise UserError(f"{path}: there is no whole record of the samples of {result['task']}: {again}")
    side = _Side(result, parse(Task, record.facts["task"], where=str(path)), record.rows)
    if any(result.get(key) != value for key, value in record.stamp.items()) or not side.is_of_the_result:
        raise UserError(f"{path} is not the record of the result beside it: {again}")
    return side


def _random(seed: int, task: str) -> np.random.Generator:
    """So that what is drawn depends on the seed, the task and its samples alone."""
    return np.random.default_rng(int(fingerprint([seed, task])[:16], 16))


def _row(values: Sequence[float], drawn: np.ndarray) -> dict[str, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    difference = values[1] - values[0]
    return {"a": values[0], "b": values[1], "difference": difference, "low": float(low), "high": float(high)}


def _mean(scores: dict[str, dict[str, Any]], drawn: dict[str, np.ndarray]) -> dict[str, Any] | None:
    if not drawn:
        return None
    values = [float(np.mean([scores[name][side] for name in drawn])) for side in "ab"]
    return {"tasks": len(drawn), **_row(values, np.mean(list(drawn.values()), axis=0))}


def _model(results: dict[str, Result], compared: Sequence[str]) -> dict[str, str]:
    models = {
        tuple(results[name][key] for key in ("model", "checkpoint_sha256", "precision")): name for name in compared
    }
    if len(models) > 1:
        raise UserError(f"results of {len(models)} models in one folder: {', '.join(models.values())}")
    (model,) = models
    return dict(zip(("model", "checkpoint_sha256", "precision"), model, strict=True))


def _listed(reasons: dict[str, str]) -> str:
    return "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
