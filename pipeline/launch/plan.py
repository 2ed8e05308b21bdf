"""The frozen plan of a run directory: which recipe, resolved how, in which stages.

Once written it does not change. The same recipe continues the run; another one is refused with the difference.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Any

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


def settle(config: RunConfig, run_dir: Path) -> RunConfig:
    """The recipe as it can be frozen: folders absolute, everything that would fail later refused now.

    Writes nothing. Raises UserError, with what differs, when `run_dir` was made by another plan or is not ours.
    """
    config = _with_absolute_paths(config)
    standing = run_dir / "plan.json"
    if standing.exists():
        config = _as_it_stands(config, standing)
    elif run_dir.exists():
        _refuse_foreign(run_dir)
    else:
        build_objective(config.objective, config.objectives.get(config.objective, {}))  # it checks its own options
    return config


def freeze(config: RunConfig, run_dir: Path) -> RunPaths:
    """Write the plan of a settled recipe, unless it stands. Only one process at a time may do this."""
    paths = RunPaths(run_dir.resolve(), config)
    if not paths.plan.exists():
        if config.corpus.fabricate and config.corpus.port == 0:
            corpus = config.corpus.model_copy(update={"port": free_port()})
            paths = RunPaths(paths.root, config.model_copy(update={"corpus": corpus}))
        stages = [{"name": s.name, "needs": s.needs, "elements": s.elements} for s in build_stages(paths)]
        plan = {"recipe": config.name, "config": paths.config.model_dump(mode="json"), "stages": stages}
        write_json(paths.plan, {**plan, "fingerprint": fingerprint(plan)})
    if not paths.recipe.exists():
        with atomic_open(paths.recipe, "w") as stream:
            yaml.safe_dump(paths.config.model_dump(mode="json"), stream, sort_keys=False)
    return paths


def open_plan(run_dir: Path) -> RunPaths:
    """The plan of a run directory as it stands. Raises UserError when there is none."""
    file = run_dir / "plan.json"
    return RunPaths(run_dir.resolve(), parse(RunConfig, _frozen_config(file), where=str(file)))


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


def _frozen_config(file: Path) -> dict[str, Any]:
    try:
        config = read_json(file)["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file.parent} is no run directory: plan.json cannot be read ({error!r})") from error
    return dict(config)


def _as_it_stands(config: RunConfig, standing: Path) -> RunConfig:
    before, after = _frozen_config(standing), config.model_dump(mode="json")
    if after["corpus"]["port"] == 0:
        after["corpus"]["port"] = before["corpus"]["port"]  # any port was asked for, and this one was found
    changed = differences(before, after)
    if changed:
        raise UserError(
            f"{standing.parent} was made by another plan; what differs:\n  " + "\n  ".join(changed) + "\n"
            "Run the recipe that it was made with, or give another directory."
        )
    return open_plan(standing.parent).config


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
