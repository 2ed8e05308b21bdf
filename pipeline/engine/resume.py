"""Going on from a checkpoint, on the ranks and under the ZeRO stage that it was saved with or on others."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline import collectives
from pipeline.engine.elastic import convert, converted_moments, load_elsewhere, whole_moments
from pipeline.engine.engine import TrainEngine
from pipeline.engine.resume_evidence import updates_made
from pipeline.engine.safe_loading import loading
from pipeline.engine.sharded_state import load_tables
from pipeline.engine.snapshot import SHARDS
from pipeline.engine.tags import newest_whole
from pipeline.engine.weight_average import AVERAGE
from pipeline.errors import UserError
from pipeline.files import read_json

log = logging.getLogger(__name__)


def restore(engine: TrainEngine, checkpoints: Path) -> dict[str, Any] | None:
    """Load the newest tag that is complete and whole; collective. Returns its trainer state, None if there is none.

    Raises UserError when all tags are damaged; when the tag was saved by another number of ranks or under another ZeRO
    stage and cannot be converted; when it has other tables per sample; when it holds code.
    """
    tag = _newest(engine, checkpoints)
    if tag is None:
        return None
    folder = checkpoints / tag
    state = {"zero_stage": engine.zero_stage, **read_json(folder / "trainer.json")}  # the oldest do not name it
    with loading(folder):
        if (state["world_size"], state["zero_stage"]) == (engine.world.size, engine.zero_stage):
            engine.load(checkpoints, tag)
            _restore_rng(torch.load(folder / f"rng-{engine.world.rank:05d}.pt", weights_only=True))
        else:
            _load_elsewhere(engine, folder, state)
        engine.objective.load_state_dict(torch.load(folder / "objective.pt", map_location="cpu", weights_only=True))
    engine.objective.load_sharded_state(load_tables(folder / SHARDS, engine.objective.sharded_state()))
    if engine.average is not None:
        engine.average.load(folder / AVERAGE, state["world_size"], state["zero_stage"])
    engine.step_number = state["step"]
    return state


def _newest(engine: TrainEngine, checkpoints: Path) -> str | None:
    """What rank 0 finds, on every rank."""
    tag, problem = None, None
    if engine.world.rank == 0:
        try:
            tag = newest_whole(checkpoints)
        except (UserError, OSError) as error:
            problem = str(error)
    tag, problem = collectives.broadcast_object((tag, problem))
    if problem is not None:
        raise UserError(problem)
    return tag


def _load_elsewhere(engine: TrainEngine, folder: Path, state: dict[str, Any]) -> None:
    """On other ranks or another stage than it was saved by; collective."""
    log.info(
        "%s was saved by %d ranks under ZeRO stage %d; converting it for %d under stage %d",
        *(folder, state["world_size"], state["zero_stage"], engine.world.size, engine.zero_stage),
    )
    torch.manual_seed(engine.config.seed + 1_000_003 * state["step"] + engine.world.rank)  # the states are per rank
    if state["zero_stage"] == engine.zero_stage == 0:  # every rank has everything
        engine.load(folder.parent, folder.name)
        return
    if state["zero_stage"] == 0:
        load_elsewhere(engine, folder, whole_moments(engine, folder), updates_made(state))
        return
    converted = folder.parent / f".converted-{folder.name}"
    problem = _convert(folder, converted) if engine.world.rank == 0 else None
    problem = collectives.broadcast_object(problem)
    if problem is not None:
        raise UserError(problem)
    load_elsewhere(engine, folder, converted_moments(converted), updates_made(state))
    collectives.barrier()
    if engine.world.rank == 0:
        shutil.rmtree(converted)


def _convert(folder: Path, converted: Path) -> str | None:
    """What went wrong, so that all ranks can say it."""
    try:
        convert(folder, converted)
    except UserError as error:
        return str(error)
    return None


def _restore_rng(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
