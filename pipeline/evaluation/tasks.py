"""What a task is, and `DATA/tasks.yaml`, which lists them.

    scenes/unseen_combinations:
      kind: classification
      title: Unseen combinations
      size: 320
      classes: 16
      main_metric: acc1
      chance: 0.0625

A task's files lie in `DATA/wds_<task>_test`, with `/` in the name written as `-` (DataComp's layout).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.loader import parse, read_yaml
from pipeline.config.schema import Section
from pipeline.errors import UserError

TASKS_FILE = "tasks.yaml"
RESERVED = "aggregate"  # results/aggregate.json is the average of all tasks
_NAME = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_MAIN_METRICS = {
    "classification": ("acc1", "mean_per_class_recall"),
    "retrieval": ("mean_recall@1",),
    "worst_group": ("worst_group_accuracy",),
}


class Task(Section):
    """One task's definition. chance: the main metric of a model that guesses."""

    kind: Literal["classification", "retrieval", "worst_group"]
    title: str
    size: int = Field(ge=1)  # images
    main_metric: str
    chance: float = Field(ge=0, le=1)
    classes: int | None = Field(None, ge=2)
    templates: int | None = Field(None, ge=1)  # checked against the file where given
    captions: int | None = Field(None, ge=1)  # of all images together; checked where given
    group_names: tuple[str, ...] = ()  # name of each value of the metadata's first column

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Task:
        metrics = _MAIN_METRICS[self.kind]
        if self.main_metric not in metrics:
            raise ValueError(f"main_metric of kind {self.kind} is {' or '.join(metrics)}, not {self.main_metric!r}")
        if (self.classes is None) != (self.kind == "retrieval"):
            raise ValueError("classes belongs to kinds classification and worst_group, which need it")
        if self.templates and self.kind == "retrieval":
            raise ValueError("templates belongs to kinds classification and worst_group")
        if self.captions and self.kind != "retrieval":
            raise ValueError("captions belongs to kind retrieval")
        if bool(self.group_names) != (self.kind == "worst_group"):
            raise ValueError("group_names belongs to kind worst_group, which needs it")
        if len(set(self.group_names)) != len(self.group_names):
            raise ValueError("group_names holds a name twice")
        return self

    @property
    def class_count(self) -> int:
        """C of a task that has classes."""
        if self.classes is None:
            raise TypeError(f"a {self.kind} task has no classes")
        return self.classes


def file_name(task: str) -> str:
    """A task's name in paths, as the official evaluation spells it: `vtab/pets` -> `vtab-pets`."""
    return task.replace("/", "-")


def load_tasks(data: Path) -> dict[str, Task]:
    """The tasks of `data/tasks.yaml`, by name, in the file's order.

    Raises UserError for a missing or empty file, an unknown key, a definition that contradicts itself, a
    reserved name, or two names that share their files.
    """
    path = data / TASKS_FILE
    if not path.is_file():
        raise UserError(f"no {TASKS_FILE} in {data}: it names the tasks to evaluate (see docs/evaluation.md)")
    tasks: dict[str, Task] = {}
    owners: dict[str, str] = {}
    for name, entry in read_yaml(path).items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"{path}: {name!r} is not a task name: use letters, digits, - and _, parts joined by /")
        if not isinstance(entry, dict):
            raise UserError(f"{path}: {name}: should be a mapping (kind, title, size, ...), not {entry!r}")
        if file_name(name) == RESERVED:
            raise UserError(f"{path}: {name!r} is no name for a task: its result would be overwritten by the average's")
        twin = owners.setdefault(file_name(name), name)
        if twin != name:
            raise UserError(f"{path}: tasks {twin!r} and {name!r} would share the folder {file_name(name)!r}")
        tasks[name] = parse(Task, entry, where=f"{path}: {name}")
    if not tasks:
        raise UserError(f"{path} lists no tasks")
    return tasks


def select_tasks(tasks: dict[str, Task], chosen: Sequence[str] | Literal["all"]) -> dict[str, Task]:
    """The chosen tasks, each once, in the order chosen. Raises UserError for an unknown name, or for none."""
    if chosen == "all":
        return tasks
    unknown = [name for name in chosen if name not in tasks]
    if unknown:
        raise UserError(f"no task {', '.join(map(repr, unknown))}; {TASKS_FILE} has {', '.join(tasks)}")
    if not chosen:
        raise UserError(f"no task chosen; {TASKS_FILE} has {', '.join(tasks)}")
    return {name: tasks[name] for name in chosen}
