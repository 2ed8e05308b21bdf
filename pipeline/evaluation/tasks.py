"""What a task is, and the files that list them: DataComp's 40 (`tasks.yaml` here) and a user's (`DATA/tasks.yaml`).

    scenes/unseen_combinations:
      kind: classification
      title: Unseen combinations
      size: 320
      classes: 16
      main_metric: acc1
      chance: 0.0625

A folder without that file holds DataComp's tasks. One that begins with `extends: datacomp` adds to them, or changes
what it says of them; what it adds is averaged by itself, as the group `own`, and DataComp's average stays what it is. A
task's files lie in `DATA/wds_<task>_test`, with `/` in the name written as `-`, unless it names another `folder`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from pipeline.config.loader import parse, read_yaml
from pipeline.config.schema import Section
from pipeline.errors import UserError

TASKS_FILE = "tasks.yaml"
DATACOMP = "datacomp"
RESERVED = "aggregate"  # results/aggregate.json is the average of all tasks
OWN = "own"  # the group of tasks beside DataComp's
COST_PER_IMAGE = 136 / 50_000  # ImageNet's
_NAME = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")

KindName = Literal["classification", "worst_group", "iwildcam", "fmow", "fairface", "retrieval", "winogavil"]


class _Rules(NamedTuple):
    """What a task of one kind may be judged by, what it has to say, and what it may say."""

    main_metrics: tuple[str, ...]
    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ()


_RULES: dict[str, _Rules] = {
    "classification": _Rules(("acc1", "mean_per_class_recall"), ("classes",), ("templates",)),
    "worst_group": _Rules(
        ("acc_wg", "acc_top5_wg", "acc1"), ("classes", "columns", "group_by"), ("templates", "group_names", "top")
    ),
    "iwildcam": _Rules(("F1-macro_all",), ("classes",), ("templates",)),
    "fmow": _Rules(("acc_worst_region",), ("classes",), ("templates",)),
    "fairface": _Rules(()),
    "retrieval": _Rules(("mean_recall@1",), (), ("captions",)),
    "winogavil": _Rules(("jaccard_score_10-12", "avg_jaccard_score")),
}
_DECIDE_NO_SCORE = {"title", "chance", "in_average", "groups", "cost", "folder", "repository", "revision"}
_OF_SOME_KINDS = ("classes", "templates", "captions", "columns", "group_by", "group_names", "top")


class Task(Section):
    """One task's definition. chance: the main metric of a model that guesses."""

    kind: KindName
    title: str
    size: int = Field(ge=1)  # images; instances of WinoGAViL
    main_metric: str | None = None
    chance: float | None = Field(None, ge=0, le=1)
    in_average: bool = True
    groups: tuple[str, ...] = ()  # sub-averages that it counts in
    cost: float | None = Field(None, gt=0)  # relative to the other tasks
    classes: int | None = Field(None, ge=2)
    templates: int | None = Field(None, ge=1)  # checked against the file where given
    captions: int | None = Field(None, ge=1)  # of all images together; checked where given
    columns: tuple[str, ...] = ()  # of the metadata, in order
    group_by: str | None = None  # the column whose groups are told apart
    group_names: tuple[str, ...] = ()  # name of each value of that column; without, the value
    top: Literal[1, 5] | None = None  # an image counts if its class is among so many best; 1 where not given
    format: Literal["webdataset", "parquet"] = "webdataset"
    folder: str | None = None  # below DATA
    repository: str | None = None  # of the Hugging Face hub
    revision: str = "main"

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Task:
        rules = _RULES[self.kind]
        said = [key for key in _OF_SOME_KINDS if getattr(self, key) not in (None, ())]
        for key in said:
            if key not in rules.needs + rules.may:
                kinds = [kind for kind, other in _RULES.items() if key in other.needs + other.may]
                raise ValueError(f"{key} belongs to kind {' and '.join(kinds)}, not to {self.kind}")
        missing = [key for key in rules.needs if key not in said]
        if missing:
            raise ValueError(f"kind {self.kind} needs {', '.join(missing)}")
        if self.main_metric not in (*rules.main_metrics, *([] if rules.main_metrics else [None])):
            expected = " or ".join(rules.main_metrics) or "none"
            raise ValueError(f"main_metric of kind {self.kind} is {expected}, not {self.main_metric!r}")
        if self.in_average and (self.main_metric is None or self.chance is None):
            raise ValueError("a task in the average has a main_metric and a chance; else say in_average: false")
        return self

    @model_validator(mode="after")
    def _groups_are_told_apart(self) -> Task:
        if self.group_by is not None and self.group_by not in self.columns:
            raise ValueError(f"group_by {self.group_by!r} is none of the columns {', '.join(self.columns)}")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("columns holds a name twice")
        if len(set(self.group_names)) != len(self.group_names):
            raise ValueError("group_names holds a name twice")
        if self.kind == "worst_group" and (self.top == 5) != (self.main_metric == "acc_top5_wg"):
            raise ValueError("main_metric acc_top5_wg goes with top: 5, and top: 5 with it")
        if self.top == 5 and self.class_count < 5:
            raise ValueError(f"top: 5 needs at least 5 classes, not {self.classes}")
        return self

    @model_validator(mode="after")
    def _files_are_below_data(self) -> Task:
        if self.folder is not None and not _FOLDER.fullmatch(self.folder):
            raise ValueError(f"folder {self.folder!r} should be a path below the data's folder")
        if self.format == "parquet" and self.kind not in ("retrieval", "winogavil"):
            raise ValueError("format parquet belongs to kind retrieval and winogavil")
        if self.format != "parquet" and self.kind == "winogavil":
            raise ValueError("kind winogavil comes in format parquet")
        return self

    @property
    def decisive(self) -> dict[str, Any]:
        """What its score depends on: all but what it is called, counted among and compared with, and what it costs.

        Where its files come from and lie does not matter either: their content has a fingerprint of its own.
        """
        return self.model_dump(exclude=_DECIDE_NO_SCORE)

    @property
    def expected_cost(self) -> float:
        """How long it takes relative to other tasks; where it does not say, as if its images were ImageNet's."""
        return self.size * COST_PER_IMAGE if self.cost is None else self.cost

    @property
    def in_the_average(self) -> bool:
        """Whether it counts in `average`; one of the group `own` counts in that group's mean alone."""
        return self.in_average and OWN not in self.groups

    @property
    def class_count(self) -> int:
        """C of a task that has classes."""
        if self.classes is None:
            raise TypeError(f"a {self.kind} task has no classes")
        return self.classes


def file_name(task: str) -> str:
    """A task's name in paths, as the official evaluation spells it: `vtab/pets` -> `vtab-pets`."""
    return task.replace("/", "-")


def task_path(data: Path, name: str, task: Task) -> Path:
    """The folder of a task's files."""
    return data / (task.folder or f"wds_{file_name(name)}_test")


def datacomp_tasks() -> dict[str, Task]:
    """DataComp's 40 tasks, by name."""
    path = Path(__file__).with_name(TASKS_FILE)
    return _parsed(path, read_yaml(path))


def load_tasks(data: Path) -> dict[str, Task]:
    """The tasks of `data/tasks.yaml`, by name, in the file's order; DataComp's where there is no such file.

    Raises UserError for a folder with neither that file nor a folder of DataComp's, an empty file, an unknown key, a
    definition that contradicts itself, a reserved name, or two names that share their files.
    """
    path = data / TASKS_FILE
    if not path.is_file():
        tasks = datacomp_tasks()
        if not any(task_path(data, name, task).is_dir() for name, task in tasks.items()):
            raise UserError(
                f"no {TASKS_FILE} in {data}, and no folder of DataComp's tasks either. `neuclip eval-data download` "
                "fetches these, `neuclip eval-data fabricate` draws small ones; for tasks of your own see "
                "docs/evaluation.md"
            )
        return tasks
    return _parsed(path, _extended(path, read_yaml(path)))


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


def _extended(path: Path, entries: dict[str, Any]) -> dict[str, Any]:
    """The file's entries, laid over DataComp's where it extends them."""
    base = entries.pop("extends", None)
    if base is None:
        return entries
    if base != DATACOMP:
        raise UserError(f"{path}: extends: only {DATACOMP} can be extended, not {base!r}")
    theirs: dict[str, Any] = read_yaml(Path(__file__).with_name(TASKS_FILE))
    changed = {name: _changed(theirs[name], entries.pop(name)) for name in theirs if name in entries}
    reserved = {group for entry in theirs.values() for group in entry.get("groups", [])}
    added = {name: _in_group_own(f"{path}: {name}", entry, reserved) for name, entry in entries.items()}
    return {**theirs, **changed, **added}


def _changed(theirs: dict[str, Any], entry: Any) -> Any:
    """With another size a task costs in proportion, unless it says what."""
    if not isinstance(entry, dict):
        return entry
    size = entry.get("size")
    scaled = {"cost": theirs["cost"] * size / theirs["size"]} if isinstance(size, int) and size > 0 else {}
    return {**theirs, **scaled, **entry}


def _in_group_own(where: str, entry: Any, reserved: set[str]) -> Any:
    groups = entry.get("groups", []) if isinstance(entry, dict) else None
    if not isinstance(groups, list):
        return entry  # refused later, with the reason
    taken = reserved.intersection(map(str, groups))
    if taken:
        raise UserError(f"{where}: the group {', '.join(sorted(taken))} is DataComp's: give it another name")
    return {**entry, "groups": [*groups, *({OWN}.difference(groups))]}


def _parsed(path: Path, entries: dict[str, Any]) -> dict[str, Task]:
    tasks: dict[str, Task] = {}
    owners: dict[str, str] = {}
    for name, entry in entries.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"{path}: {name!r} is not a task name: use letters, digits, - and _, parts joined by /")
        if not isinstance(entry, dict):
            raise UserError(f"{path}: {name}: should be a mapping (kind, title, size, ...), not {entry!r}")
        if file_name(name) == RESERVED:
            raise UserError(f"{path}: {name!r} is no name for a task: its result would be overwritten by the average's")
        tasks[name] = parse(Task, entry, where=f"{path}: {name}")
        for share in (f"{file_name(name)}.json", str(task_path(Path(), name, tasks[name]))):
            twin = owners.setdefault(share, name)
            if twin != name:
                raise UserError(f"{path}: tasks {twin!r} and {name!r} would share {share!r}")
    if not tasks:
        raise UserError(f"{path} lists no tasks")
    return tasks
