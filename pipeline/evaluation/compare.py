"""Two folders of results, task by task: how far apart, and how sure that is.

The interval is that of a paired bootstrap (Efron and Tibshirani 1993): the samples of a task are drawn anew with
replacement, the same ones for both models, and each time the main metric is computed again from what the samples came
to (`records`), F1 and the worst group as well as a mean. Retrieval draws images, and each takes its captions along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.evaluation.kinds import KINDS
from pipeline.evaluation.records import read_record, samples_path
from pipeline.evaluation.results import Result, read_result
from pipeline.evaluation.task_run import Rows, row_count
from pipeline.evaluation.tasks import RESERVED, Task
from pipeline.files import fingerprint

RESAMPLES = 1000
CONFIDENCE = 0.95
_MEANS: dict[str, Callable[[Rows], torch.Tensor]] = {  # main metrics that are means over the samples, and of what
    "acc1": lambda rows: rows["place"] < 1,
    "avg_jaccard_score": lambda rows: rows["jaccard"],
}


class _Side(NamedTuple):
    """One model on one task. rows: of its samples."""

    result: Result
    task: Task
    rows: Rows

    def score(self, chosen: torch.Tensor | None = None) -> float:
        """The main metric, on all samples or the chosen ones; NaN where they have none."""
        rows = self.rows if chosen is None else _Drawn(self.rows, chosen)
        score = KINDS[self.task.kind].metrics(self.task, rows)[str(self.task.main_metric)]
        return float("nan") if score is None else score


class _Drawn(dict[str, torch.Tensor]):
    """The chosen of some rows, column by column as they are asked for."""

    def __init__(self, rows: Rows, chosen: torch.Tensor) -> None:
        self._rows, self._chosen = rows, chosen

    def __missing__(self, name: str) -> torch.Tensor:
        self[name] = self._rows[name][self._chosen]
        return self[name]


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
    known = [_results(folder) for folder in (a, b)]
    names = list(dict.fromkeys([*known[0], *known[1]]) if tasks == "all" else dict.fromkeys(tasks))
    left_out = {name: reason for name in names if (reason := _why_not(name, known, (a, b)))}
    if tasks != "all" and left_out:
        raise UserError(f"cannot compare:{_listed(left_out)}")
    compared = [name for name in names if name not in left_out]
    different = {name: reason for name in compared if (reason := _difference(*(results[name] for results in known)))}
    if different:
        raise UserError(f"{a} and {b} are not of the same tasks:{_listed(different)}")
    if not compared:
        raise UserError(f"{a} and {b} have no task in common:{_listed(left_out)}")
    scores: dict[str, dict[str, Any]] = {}
    drawn: dict[str, np.ndarray] = {}
    for name in compared:
        sides = [_side(folder, results[name]) for folder, results in zip((a, b), known, strict=True)]
        drawn[name] = _bootstrap(sides, resamples, seed, name)
        task, first = sides[0].task, sides[0].result
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
        "left_out": left_out,
    }


def _results(folder: Path) -> dict[str, Result]:
    """The results of a folder, by task."""
    names = (path.stem for path in sorted(folder.glob("*.json")) if not path.name.endswith(".error.json"))
    found = (read_result(folder, name) for name in names if name != RESERVED)
    results = {str(result["task"]): result for result in found if result is not None and "task" in result}
    if not results:
        raise UserError(f"{folder} holds no results of `neuclip evaluate`")
    return results


def _why_not(name: str, known: Sequence[dict[str, Result]], folders: Sequence[Path]) -> str | None:
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
    side = _Side(result, Task.model_validate(record.facts["task"]), record.rows)
    if any(result.get(key) != value for key, value in record.stamp.items()) or side.score() != result["score"]:
        raise UserError(f"{path} is not the record of the result beside it: {again}")
    return side


def _bootstrap(sides: Sequence[_Side], resamples: int, seed: int, name: str) -> np.ndarray:
    """Differences B - A, (resamples,) float64. What is drawn depends on the seed, the task and its samples alone."""
    random = np.random.default_rng(int(fingerprint([seed, name])[:16], 16))
    size = row_count(sides[0].rows)
    mean_of = _MEANS.get(str(sides[0].task.main_metric))
    if mean_of is not None:  # how often each difference is drawn is all that counts, and that is multinomial
        first, second = (mean_of(side.rows).double() for side in sides)
        values, counts = (second - first).unique(return_counts=True)
        return random.multinomial(size, counts.numpy() / size, size=resamples) @ values.numpy() / size
    differences = np.empty(resamples)
    for index in range(resamples):
        chosen = torch.from_numpy(random.integers(size, size=size))
        differences[index] = sides[1].score(chosen) - sides[0].score(chosen)
    return differences


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
