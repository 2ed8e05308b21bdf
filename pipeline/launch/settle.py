"""A recipe made fit to be frozen: folders absolute, whatever would fail later refused now. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipeline.config.loader import load_recipe
from pipeline.config.objectives import checked_options
from pipeline.config.schema import RunConfig
from pipeline.config.tree import differences
from pipeline.errors import UserError
from pipeline.evaluation.tasks import load_tasks, select_tasks
from pipeline.launch.paths import Member, RunPaths
from pipeline.launch.plan import open_plan


def settle(config: RunConfig, run_dir: Path, members: Sequence[Member] = ()) -> RunPaths:
    """What can be frozen in `run_dir`, or stands there. members: of a sweep.

    Raises UserError, with what differs, when `run_dir` was made by another plan or is not ours.
    """
    paths = RunPaths(run_dir.resolve(), _with_absolute_paths(config), tuple(members))
    if paths.plan.exists():
        return _as_it_stands(paths)
    if run_dir.exists():
        _refuse_foreign(run_dir)
    if paths.config.evaluate.data is not None:
        _refuse_tasks(Path(paths.config.evaluate.data), paths.config.evaluate.tasks)
    for number in range(max(1, len(members))):  # the schema leaves the options of objectives open
        of_member = paths.member(number).config
        checked_options(of_member.objective, of_member.objectives.get(of_member.objective, {}))
    return paths


def refuse_altered(paths: RunPaths) -> None:
    """Raises UserError, with what differs, where recipe.yaml, a copy that commands read, is not the plan's any more."""
    if not paths.recipe.exists():
        return
    planned, told = (config.model_dump(mode="json") for config in (paths.config, load_recipe(paths.recipe)))
    changed = differences(planned, told)
    if changed:
        raise UserError(
            f"{paths.recipe} was changed since the run was planned; what differs:\n  " + "\n  ".join(changed) + "\n"
            "A plan is frozen: give the changed recipe another directory. To go on as planned, remove this copy, and "
            f"then: neuclip retry {paths.root}"
        )


def _as_it_stands(paths: RunPaths) -> RunPaths:
    standing = open_plan(paths.root)
    before, after = (p.config.model_dump(mode="json") for p in (standing, paths))
    if after["corpus"]["port"] == 0:
        after["corpus"]["port"] = before["corpus"]["port"]  # any port was asked for, and this one was found
    changed = differences(before, after)
    if standing.members != paths.members:
        changed.append(f"sweep: {_names(standing)} -> {_names(paths)}")
    if changed:
        raise UserError(
            f"{paths.root} was made by another plan; what differs:\n  " + "\n  ".join(changed) + "\n"
            "Run the recipe that it was made with, or give another directory."
        )
    return standing


def _names(paths: RunPaths) -> str:
    return "; ".join(member.name for member in paths.members) or "none"


def _refuse_tasks(data: Path, names: Sequence[str] | Literal["all"]) -> None:
    if names != "all":
        select_tasks(load_tasks(data), names)


def _refuse_foreign(run_dir: Path) -> None:
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file: give a directory")
    # Dotted names are ours: a lock, or what a kill left of a plan that was being written.
    if any(not path.name.startswith(".") for path in run_dir.iterdir()):
        raise UserError(f"{run_dir} is not empty and holds no run: give a new directory")


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """What the recipe names, wherever the command is given from. Raises UserError when a folder is missing."""
    if config.corpus.fabricate == "emoji" and config.data is None:
        raise UserError(f"{config.name} is made from a folder: give it with data=PATH")
    if config.corpus.fabricate is None and config.evaluate.data is None:
        raise UserError(f"{config.name}: evaluate.data is not set: give a folder with tasks.yaml and wds_* folders")
    for key, folder in (("data", config.data), ("evaluate.data", config.evaluate.data)):
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"{config.name}: no folder {folder}: give one with {key}=PATH")
    corpus = config.corpus.model_copy(update={"name": _if_file(config.corpus.name)})
    evaluate = config.evaluate.model_copy(update={"data": _absolute(config.evaluate.data)})
    train = config.train.model_copy(update={"deepspeed": _if_file(config.train.deepspeed)})
    changes = {"data": _absolute(config.data), "corpus": corpus, "evaluate": evaluate, "train": train}
    return config.model_copy(update=changes)


def _absolute(folder: str | None) -> str | None:
    return str(Path(folder).resolve()) if folder is not None else None


def _if_file(name: str) -> str:
    """A shipped name as it is, a file's path absolute."""
    return str(Path(name).resolve()) if Path(name).is_file() else name
