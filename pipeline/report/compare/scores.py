"""Scores of groups of runs, task by task and on average, with their noise and the best of each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from pipeline.errors import UserError
from pipeline.evaluation.tasks import TASKS_FILE, Task, datacomp_tasks, load_tasks
from pipeline.report.compare.estimates import Difference, Estimate, difference, mean_of, of_images, of_seeds
from pipeline.report.compare.groups import Group
from pipeline.report.compare.run import Run
from pipeline.text import one_line
from pipeline.typed_files import Json


@dataclass(frozen=True)
class Line:
    """One task, or the mean of several. cells: an estimate by group, None where it has none.

    section: the part of the benchmark that it counts in. by_run: scores by run name.
    """

    title: str
    section: str
    metric: str
    chance: float | None
    cells: tuple[Estimate | None, ...]
    by_run: dict[str, float]

    @property
    def best(self) -> int | None:
        """The group with the highest mean, if there are two to choose from and one is higher."""
        means = [cell.mean for cell in self.cells if cell is not None]
        if len(means) < 2 or means.count(max(means)) > 1:
            return None
        return next(i for i, cell in enumerate(self.cells) if cell is not None and cell.mean == max(means))

    def differences(self, baseline: int) -> list[Difference | None]:
        """Of each group to group `baseline`; None for that one, and where either has no score."""
        base = self.cells[baseline]
        return [
            difference(cell, base) if cell is not None and base is not None and i != baseline else None
            for i, cell in enumerate(self.cells)
        ]


@dataclass(frozen=True)
class ScoreTable:
    """tasks: those that any run has. overall: None where no two runs share a task, or none has scores.

    notes: what keeps the numbers from being like for like.
    """

    tasks: list[Line] = field(default_factory=list)
    overall: Line | None = None
    notes: list[str] = field(default_factory=list)


def score_table(groups: Sequence[Group]) -> ScoreTable:
    """Over all results that the runs have."""
    runs = [run for group in groups for run in group.runs]
    results = {run.name: {result["task"]: result for result in run.scores.results} for run in runs}
    evaluated = [run for run in runs if results[run.name]]
    if not evaluated:
        return ScoreTable()
    definitions = _definitions(evaluated)
    names = list(dict.fromkeys(task for run in evaluated for task in results[run.name]))
    order = {name: place for place, name in enumerate(definitions)}
    names.sort(key=lambda name: order.get(name, len(order)))
    tasks = [_task(name, definitions.get(name), groups, results) for name in names]
    common = [name for name in names if all(name in results[run.name] for run in evaluated)]
    apart = [name for name in common if name in definitions and not definitions[name].in_the_average]
    return ScoreTable(tasks, _overall(groups, evaluated, results, common, apart), _unlike(evaluated, results, names))


def _task(name: str, task: Task | None, groups: Sequence[Group], results: dict[str, dict[str, Json]]) -> Line:
    having = {run.name: results[run.name][name] for group in groups for run in group.runs if name in results[run.name]}
    first = next(iter(having.values()))
    cells = [_estimate([having[run.name] for run in group.runs if run.name in having]) for group in groups]
    section = task.groups[0] if task is not None and task.groups else one_line(first.get("kind") or "")
    scores = {run: float(result["score"]) for run, result in having.items()}
    title = one_line(first.get("title") or name, 100)
    return Line(title, section, one_line(first.get("main_metric")), first.get("chance"), tuple(cells), scores)


def _estimate(results: list[Json]) -> Estimate | None:
    if not results:
        return None
    if len(results) == 1:
        return of_images(results[0]["score"], results[0].get("n"))
    return of_seeds([result["score"] for result in results])


def _overall(
    groups: Sequence[Group],
    evaluated: list[Run],
    results: dict[str, dict[str, Json]],
    common: list[str],
    apart: list[str],
) -> Line | None:
    """The mean of the tasks that all evaluated runs have; it is the average where each run's own is of just these.

    apart: tasks that count in no average, as those of the group `own`.
    """
    averaged = [run.aggregate for run in evaluated if run.aggregate is not None and "average" in run.aggregate]
    whole = len(averaged) == len(evaluated) and len({frozenset(summary["scores"]) for summary in averaged}) == 1
    counted = [name for name in common if whole and name in averaged[0]["scores"] and name not in apart]
    whole = whole and len(counted) == averaged[0].get("tasks")
    common = counted if whole else common
    if not common:
        return None
    means = {run.name: sum(results[run.name][name]["score"] for name in common) / len(common) for run in evaluated}
    cells: list[Estimate | None] = []
    for group in groups:
        present = [run.name for run in group.runs if run.name in means]
        if len(present) == 1:
            single = [results[present[0]][name] for name in common]
            cells.append(mean_of([of_images(result["score"], result.get("n")) for result in single]))
        else:
            cells.append(of_seeds([means[name] for name in present]) if present else None)
    tasks = f"{len(common)} task" + ("" if len(common) == 1 else "s")
    title = f"Average of {tasks}" if whole else f"Mean of the {tasks} that all have"
    return Line(title, "", "mean", None, tuple(cells), means)


def _definitions(runs: Sequence[Run]) -> dict[str, Task]:
    """What is known of the tasks: their order, and the parts of the benchmark that they count in."""
    for run in runs:
        with suppress(UserError, OSError):
            if (run.evaldata / TASKS_FILE).is_file():
                return load_tasks(run.evaldata)
    return datacomp_tasks()


def _unlike(evaluated: Sequence[Run], results: dict[str, dict[str, Json]], names: Sequence[str]) -> list[str]:
    notes = []
    for key, what in (
        ("task_hash", "the task's definition"),
        ("data_fingerprint", "the evaluation's data"),
        ("code_version", "the version of the evaluation's code"),
        ("precision", "the precision"),
    ):
        unlike = [
            name
            for name in names
            if len({results[run.name][name].get(key) for run in evaluated if name in results[run.name]}) > 1
        ]
        if unlike:
            tasks = "all tasks" if len(unlike) == len(names) else ", ".join(unlike[:5]) + ("…" if unlike[5:] else "")
            notes.append(f"Not like for like: {what} differs between runs in {tasks}.")
    return notes
