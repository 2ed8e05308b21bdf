"""Which runs are the same but for their seed, and in which settings the others differ."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.loader import parse
from pipeline.config.schema import RunConfig
from pipeline.config.tree import flatten
from pipeline.errors import UserError
from pipeline.report.compare.run import Run
from pipeline.same_run import what_decides
from pipeline.text import one_line
from pipeline.time_spent import TimeSpent

INCIDENTAL = ("corpus.port", "name", "description")  # tell nothing of what was trained
SEED = "seed"
MOST_IN_LABEL = 3  # settings


@dataclass(frozen=True)
class Group:
    """runs: the same in what they are grouped by. number: its place, which decides its colour everywhere."""

    label: str
    runs: tuple[Run, ...]
    number: int


@dataclass(frozen=True)
class Setting:
    """One that differs. values: by run; None where a run has no such setting."""

    key: str
    values: tuple[Any, ...]


def differing(runs: Sequence[Run]) -> list[Setting]:
    """Every setting in which the runs differ, by its dotted name; the incidental ones are left out."""
    return _differences([dict(flatten(run.config)) for run in runs])


def _differences(trees: Sequence[dict[str, Any]]) -> list[Setting]:
    keys = sorted({key for tree in trees for key in tree} - set(INCIDENTAL))
    values = {key: tuple(tree.get(key) for tree in trees) for key in keys}
    return [Setting(key, row) for key, row in values.items() if len({_frozen(value) for value in row}) > 1]


def group_runs(runs: Sequence[Run], by: str | None = None) -> list[Group]:
    """Groups in the order of their first runs. by: settings separated by commas.

    By default every setting that differs and decides the weights, but the seed: runs of a group are then the same
    training, more than once. Raises UserError for a setting that no run has.
    """
    trees = [dict(flatten(run.config)) if by else _decisive(run) for run in runs]
    if by is None:
        keys = [setting.key for setting in _differences(trees) if setting.key != SEED and _parts(setting, runs)]
    else:
        keys = [key.strip() for key in by.split(",")]
        for key in keys:
            if not any(key in tree for tree in trees):
                raise UserError(f"--group-by {key}: no run has that setting; give its dotted name, as train.steps")
    keys.sort(key=lambda key: key != "objective")  # what a run is called by comes first
    members: dict[Hashable, list[int]] = {}
    for i, tree in enumerate(trees):
        # A run without a recipe is like no other.
        same = tuple(_frozen(tree.get(key)) for key in keys) if tree else runs[i].name
        members.setdefault(same, []).append(i)
    groups: list[Group] = []
    for places in members.values():
        label = _label(trees[places[0]], keys, [runs[i] for i in places])
        groups.append(Group(_told_apart(label, groups), tuple(runs[i] for i in places), len(groups)))
    return groups


def mean_over(group: Group, value: Callable[[Run], float | None]) -> float | None:
    """Of the runs that have the value."""
    known = [found for run in group.runs if (found := value(run)) is not None]
    return statistics.fmean(known) if known else None


def mean_time(group: Group) -> TimeSpent:
    """In training steps."""
    seconds = mean_over(group, lambda run: run.spent.train_seconds if run.spent else None)
    gpu_hours = mean_over(group, lambda run: run.spent.gpu_hours if run.spent else None)
    cpu_hours = mean_over(group, lambda run: run.spent.cpu_hours if run.spent else None)
    return TimeSpent(math.nan if seconds is None else seconds, gpu_hours, cpu_hours)


def mixed_settings(group: Group, by: str | None) -> list[str]:
    """Settings besides the seed in which runs of one group differ: its spread is then not only that of seeds."""
    if by is None:
        return []
    return [setting.key for setting in _differences([_decisive(run) for run in group.runs]) if setting.key != SEED]


def shown(value: Any) -> str:
    """A setting's value on one line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), 60)


def _decisive(run: Run) -> dict[str, Any]:
    """The settings on which its weights depend; all of them where its recipe is not one of this version."""
    try:
        decisive = what_decides(parse(RunConfig, run.config, where=run.name))
    except UserError:
        return dict(flatten(run.config))
    return dict(flatten({**decisive, "corpus": {"name": run.corpus}}))


def _parts(setting: Setting, runs: Sequence[Run]) -> bool:
    """An objective's option parts its own runs only: those of another objective have none, and are apart already."""
    if not setting.key.startswith("objectives."):
        return True
    objective = setting.key.split(".")[1]
    own = {_frozen(value) for value, run in zip(setting.values, runs, strict=True) if run.objective == objective}
    return len(own) > 1


def _label(tree: dict[str, Any], keys: list[str], runs: list[Run]) -> str:
    """The settings that make the group; the name of a run that is alone and would need many."""
    keys = [key for key in keys if key in tree or not key.startswith("objectives.")]
    if not tree or (len(runs) == 1 and (not keys or len(keys) > MOST_IN_LABEL)):
        return one_line(runs[0].name, 40)
    if not keys:
        return one_line(runs[0].objective, 40)
    leaves = [key.rpartition(".")[2] for key in keys]
    names = [leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)]
    values = [shown(tree.get(key)) for key in keys]
    words = [value if name == "objective" else f"{name}={value}" for name, value in zip(names, values, strict=True)]
    return one_line(", ".join(words[:MOST_IN_LABEL]) + (", …" if len(words) > MOST_IN_LABEL else ""), 60)


def _told_apart(label: str, before: Sequence[Group]) -> str:
    same = sum(group.label == label or group.label.startswith(f"{label} (") for group in before)
    return f"{label} ({same + 1})" if same else label


def _frozen(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
