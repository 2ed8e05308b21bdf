"""A run, and what the stages of its plan have left behind, as far as it is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import UserError
from pipeline.report.compare.run import MEMBERS, Run
from pipeline.run_files import MARKER, PLAN, RECIPE
from pipeline.typed_files import Json, Reader


@dataclass(frozen=True)
class StageFacts:
    """One stage of the plan and the markers of its elements that are done.

    seconds: of all its elements, added up. started_at: unix seconds of the first, None before it ran.
    """

    name: str
    elements: int
    markers: list[Json]

    @property
    def status(self) -> Literal["done", "incomplete", "not run"]:
        if len(self.markers) == self.elements:
            return "done"
        return "incomplete" if self.markers else "not run"

    @property
    def seconds(self) -> float | None:
        return sum(marker["seconds"] for marker in self.markers) if self.markers else None

    @property
    def started_at(self) -> float | None:
        return min((marker["started_at"] for marker in self.markers if "started_at" in marker), default=None)


@dataclass(frozen=True)
class RunFacts:
    """run: what it is and has come to. plan: of the run, or as if its sweep had but this member."""

    run: Run
    plan: Json
    stages: list[StageFacts]

    @property
    def config(self) -> Json:
        """The resolved recipe, folders as they are."""
        return dict(self.plan["config"])


def read_facts(run_dir: Path) -> RunFacts:
    """Read a run directory, or the folder of one member of a sweep. Raises UserError if there is no plan."""
    of_sweep = run_dir.parent.name == MEMBERS and not (run_dir / "plan.json").exists()
    shared = run_dir.parent.parent if of_sweep else run_dir  # where a sweep keeps what its members share
    plan = PLAN.read(shared / "plan.json")
    if plan is None:
        raise UserError(f"{run_dir} is no run directory: it has no plan.json. Give the folder of a run.")
    if of_sweep:
        plan = _plan_of_member(plan, run_dir)
    run = Run(run_dir, run_dir.name)
    return RunFacts(run, plan, [_stage(shared, stage, run.read) for stage in plan["stages"]])


def _plan_of_member(plan: Json, folder: Path) -> Json:
    """The plan of a sweep as if there were but this member: its recipe, and of the stages its elements."""
    names = [member["name"] for member in plan.get("members", ())]
    if folder.name not in names:
        raise UserError(f"{folder} is no member of the sweep in {folder.parent.parent}: there are {', '.join(names)}")
    number, config = names.index(folder.name), RECIPE.read(folder / "recipe.yaml")
    if config is None:
        raise UserError(f"no such file: {folder / 'recipe.yaml'}")
    stages = [
        {**stage, "elements": each or stage["elements"], "first": number * each}
        for stage in plan["stages"]
        if stage["name"] != "compare"
        for each in (stage.get("per_member", 0),)
    ]
    return {"recipe": plan["recipe"], "config": config, "stages": stages}


def _stage(run_dir: Path, stage: Json, read: Reader) -> StageFacts:
    first = stage.get("first", 0)
    paths = [run_dir / "stages" / f"{stage['name']}.{first + i}.json" for i in range(stage["elements"])]
    markers = [marker for path in paths if (marker := read(MARKER, path)) and marker.get("status") == "done"]
    return StageFacts(stage["name"], stage["elements"], markers)
