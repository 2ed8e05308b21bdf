"""The frozen plan of a run directory: which recipe, resolved how, in which stages, for which members of a sweep.

Once written it does not change. The same recipe continues the run; another one is refused with the difference
(`settle`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.config.loader import parse
from pipeline.config.schema import RunConfig
from pipeline.errors import UserError
from pipeline.files import atomic_open, fingerprint, write_json
from pipeline.launch.environment import describe_environment
from pipeline.launch.paths import Member, RunPaths
from pipeline.launch.ports import free_port
from pipeline.launch.stages import build_stages
from pipeline.run_files import PLAN


def freeze(paths: RunPaths) -> RunPaths:
    """Write the plan of a settled recipe, unless it stands. Only one process at a time may do this."""
    if not paths.plan.exists():
        if paths.config.corpus.fabricate and paths.config.corpus.port == 0:
            corpus = paths.config.corpus.model_copy(update={"port": free_port()})
            paths = RunPaths(paths.root, paths.config.model_copy(update={"corpus": corpus}), paths.members)
        plan = {"recipe": paths.config.name, "config": paths.config.model_dump(mode="json"), "stages": _stages(paths)}
        if paths.members:
            plan["members"] = [{"name": m.name, "overrides": list(m.overrides)} for m in paths.members]
        write_json(paths.plan, {**plan, "fingerprint": fingerprint(plan)})
    if not paths.environment.exists():
        write_json(paths.environment, describe_environment())
    for recipe_of in (paths, *(paths.member(i) for i in range(len(paths.members)))):
        if not recipe_of.recipe.exists():
            with atomic_open(recipe_of.recipe, "w") as stream:
                yaml.safe_dump(recipe_of.config.model_dump(mode="json"), stream, sort_keys=False)
    return paths


def open_plan(run_dir: Path) -> RunPaths:
    """The plan of a run directory as it stands. Raises UserError when there is none, or it was changed."""
    file = run_dir / "plan.json"
    plan = PLAN.read(file)
    if plan is None:
        raise UserError(f"{run_dir} is no run directory: it has no plan.json")
    written = plan.pop("fingerprint", None)
    if fingerprint(plan) != written:
        raise UserError(
            f"{file} was changed since it was written (its fingerprint says so): a plan is frozen. Put back what was "
            "there, or run the recipe in another directory."
        )
    members = tuple(Member(m["name"], tuple(m["overrides"])) for m in plan.get("members", ()))
    return RunPaths(run_dir.resolve(), parse(RunConfig, plan["config"], where=str(file)), members)


def _stages(paths: RunPaths) -> list[dict[str, Any]]:
    """As the report reads them; of a sweep also how many elements each member has."""
    of_member = (lambda stage: {"per_member": stage.per_member}) if paths.members else (lambda stage: {})
    return [
        {"name": stage.name, "needs": stage.needs, "elements": stage.elements, **of_member(stage)}
        for stage in build_stages(paths)
    ]
