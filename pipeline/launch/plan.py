"""The frozen plan of a run directory: which recipe, resolved how, in which stages.

Once written it does not change. The same recipe continues the run; another one is refused with the difference.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

import yaml

from pipeline.config.diff import differences
from pipeline.config.loader import parse
from pipeline.config.schema import RunConfig
from pipeline.errors import UserError
from pipeline.files import atomic_open, fingerprint, read_json, write_json
from pipeline.launch.paths import RunPaths
from pipeline.launch.stages import build_stages
from pipeline.objectives import build_objective

PORTS = range(20000, 32000)  # below the range from which systems take ports for outgoing connections


def freeze(config: RunConfig, run_dir: Path) -> RunPaths:
    """Write the plan, or check that the one that stands is this one.

    Raises UserError, with what differs, when the directory was made by another plan or is no run directory.
    """
    run_dir = run_dir.resolve()
    config = _with_absolute_paths(config)
    standing = run_dir / "plan.json"
    if standing.exists():
        return _continue(config, run_dir)
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file: give a directory")
    if run_dir.is_dir() and any(run_dir.iterdir()):
        raise UserError(f"{run_dir} is not empty and holds no run: give a new directory")
    build_objective(config.objective, config.objectives.get(config.objective, {}))  # its options are checked by itself
    if config.corpus.fabricate and config.corpus.port == 0:
        corpus = config.corpus.model_copy(update={"port": free_port()})
        config = config.model_copy(update={"corpus": corpus})
    paths = RunPaths(run_dir, config)
    tree = config.model_dump(mode="json")
    stages = [{"name": s.name, "needs": s.needs, "elements": s.elements} for s in build_stages(paths)]
    with atomic_open(paths.recipe, "w") as stream:
        yaml.safe_dump(tree, stream, sort_keys=False)
    plan = {"recipe": config.name, "config": tree, "stages": stages}
    write_json(paths.plan, {**plan, "fingerprint": fingerprint(plan)})
    return paths


def open_plan(run_dir: Path) -> RunPaths:
    """The plan of a run directory as it stands. Raises UserError when there is none."""
    try:
        plan = read_json(run_dir / "plan.json")
    except (OSError, ValueError) as error:
        raise UserError(f"{run_dir} is no run directory: plan.json cannot be read ({error})") from error
    return RunPaths(run_dir.resolve(), parse(RunConfig, plan["config"], where=str(run_dir / "plan.json")))


def free_port() -> int:
    """A port of localhost that nobody listens on now."""
    for port in random.sample(PORTS, 50):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UserError("no free port on localhost: 50 tries failed; end some servers, or set corpus.port")


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """The folders that the recipe names, wherever the command is given from. Raises UserError when one is missing."""
    for key, folder in (("data", config.data), ("evaluate.data", config.evaluate.data)):
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"{config.name}: no folder {folder}: give one with {key}=PATH")
    data = str(Path(config.data).resolve()) if config.data else None
    evaldata = str(Path(config.evaluate.data).resolve()) if config.evaluate.data else None
    evaluate = config.evaluate.model_copy(update={"data": evaldata})
    return config.model_copy(update={"data": data, "evaluate": evaluate})


def _continue(config: RunConfig, run_dir: Path) -> RunPaths:
    paths = open_plan(run_dir)
    before, after = paths.config.model_dump(mode="json"), config.model_dump(mode="json")
    if after["corpus"]["port"] == 0:
        after["corpus"]["port"] = before["corpus"]["port"]  # any port was asked for, and this one was found
    changed = differences(before, after)
    if changed:
        raise UserError(
            f"{run_dir} was made by another plan; what differs:\n  " + "\n  ".join(changed) + "\n"
            "Run the recipe that it was made with, or give another directory."
        )
    return paths
