"""Checkpoints that prove themselves (contract 3).

A tag is written under a temporary name, fsynced and renamed; then `COMPLETE`, with every file's size and sha256, is
written into it; then `latest` is replaced. Only complete tags are ever resumed; one that does not match its
`COMPLETE` is set aside (`damaged-step-...`) for the one before it, loudly.

    checkpoints/step-00000300/   ZeRO files of DeepSpeed, objective.pt, rng-00000.pt ..., trainer.json, COMPLETE
        objective-shards/        the objective's tables per sample, one file per rank: log_u.0.npy, log_u.5000.npy ...
    checkpoints/latest           the newest complete tag's name
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline import collectives
from pipeline.engine.elastic import convert, load_converted
from pipeline.engine.engine import TrainEngine
from pipeline.engine.resume_evidence import updates_made
from pipeline.engine.sharded_state import load_tables, save_tables
from pipeline.errors import UserError
from pipeline.files import atomic_open, fsync_folder, read_json, sha256_file, write_json

log = logging.getLogger(__name__)
COMPLETE = "COMPLETE"
SHARDS = "objective-shards"


class Checkpointer:
    """Saves and restores a TrainEngine with its objective, RNG and trainer state.

    folder: the run's `checkpoints`. keep: complete tags to retain.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, engine: TrainEngine, trainer_state: dict[str, Any]) -> str:
        """Write one complete tag; collective. trainer_state: JSON-able, the same on every rank. Returns the tag."""
        rank = engine.world.rank
        tag = f"step-{engine.step_number:08d}"
        temporary = self.folder / f".{tag}.tmp"
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        collectives.barrier()
        engine.save(self.folder, temporary.name)
        torch.save(_rng_state(), temporary / f"rng-{rank:05d}.pt")
        save_tables(temporary / SHARDS, engine.objective.sharded_state())
        objective_state = engine.objective.state_dict()  # collective: it may gather slices
        if rank == 0:
            torch.save(objective_state, temporary / "objective.pt")
            shape = {"world_size": engine.world.size, "zero_stage": engine.zero_stage}
            write_json(temporary / "trainer.json", {**trainer_state, **shape})
        collectives.barrier()
        if rank == 0:
            self._publish(temporary, tag)
        collectives.barrier()
        return tag

    def restore(self, engine: TrainEngine) -> dict[str, Any] | None:
        """Load the newest tag that is complete and whole; collective. Returns its trainer state, None if there is none.

        It may have been saved by another number of ranks or under another ZeRO stage. Raises UserError when it cannot
        be converted, or has another objective's tables per sample.
        """
        tag = collectives.broadcast_object(self._newest_whole() if engine.world.rank == 0 else None)
        if tag is None:
            return None
        folder = self.folder / tag
        state = {"zero_stage": engine.zero_stage, **read_json(folder / "trainer.json")}  # the oldest do not name it
        if (state["world_size"], state["zero_stage"]) == (engine.world.size, engine.zero_stage):
            engine.load(self.folder, tag)
            _restore_rng(torch.load(folder / f"rng-{engine.world.rank:05d}.pt", weights_only=True))
        else:
            self._load_elsewhere(engine, tag, state)
        engine.objective.load_state_dict(torch.load(folder / "objective.pt", map_location="cpu", weights_only=True))
        engine.objective.load_sharded_state(load_tables(folder / SHARDS, engine.objective.sharded_state()))
        engine.step_number = state["step"]
        return state

    def _load_elsewhere(self, engine: TrainEngine, tag: str, state: dict[str, Any]) -> None:
        """On other ranks or another stage than it was saved by; collective."""
        log.info(
            "%s was saved by %d ranks under ZeRO stage %d; converting it for %d under stage %d",
            *(self.folder / tag, state["world_size"], state["zero_stage"], engine.world.size, engine.zero_stage),
        )
        torch.manual_seed(engine.config.seed + 1_000_003 * state["step"] + engine.world.rank)  # the states are per rank
        if state["zero_stage"] == engine.zero_stage == 0:  # every rank has everything
            engine.load(self.folder, tag)
            return
        converted = self.folder / f".converted-{tag}"
        problem = self._convert(tag, state["zero_stage"], converted) if engine.world.rank == 0 else None
        problem = collectives.broadcast_object(problem)
        if problem is not None:
            raise UserError(problem)
        load_converted(engine, converted, self.folder / tag, updates_made(state))
        collectives.barrier()
        if engine.world.rank == 0:
            shutil.rmtree(converted)

    def _convert(self, tag: str, zero_stage: int, converted: Path) -> str | None:
        """What went wrong, so that all ranks can say it."""
        if zero_stage == 0:
            return f"{self.folder / tag} was saved under ZeRO stage 0: resume it with train.deepspeed=zero0"
        try:
            convert(self.folder / tag, converted)
        except UserError as error:
            return str(error)
        return None

    def _publish(self, temporary: Path, tag: str) -> None:
        final = self.folder / tag
        files = {}
        for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
            files[str(path.relative_to(temporary))] = {
                "bytes": path.stat().st_size,
                "sha256": sha256_file(path),
            }
        for folder in [path for path in temporary.rglob("*") if path.is_dir()]:
            fsync_folder(folder)
        fsync_folder(temporary)
        shutil.rmtree(final, ignore_errors=True)  # an incomplete tag of the same name
        temporary.rename(final)
        fsync_folder(self.folder)
        write_json(final / COMPLETE, {"files": files})
        with atomic_open(self.folder / "latest", "w") as stream:
            stream.write(tag)
        for old in complete_tags(self.folder)[: -self.keep]:
            (self.folder / old / COMPLETE).unlink()  # no longer complete before it is no longer whole
            shutil.rmtree(self.folder / old)

    def _newest_whole(self) -> str | None:
        """The newest tag that is whole. Saves that were killed are removed, damaged tags set aside."""
        tags = complete_tags(self.folder)
        for leftover in [
            *self.folder.glob(".step-*.tmp"),
            *self.folder.glob(".converted-*"),
            *self.folder.glob("step-*"),
        ]:
            if leftover.name not in tags:
                shutil.rmtree(leftover)
        for tag in reversed(tags):
            problem = find_damage(self.folder / tag)
            if problem is None:
                return tag
            log.warning("CHECKPOINT DAMAGED: %s: %s. Falling back to the one before it.", self.folder / tag, problem)
            aside = self.folder / f"damaged-{tag}"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / tag).rename(aside)
        if list(self.folder.glob("damaged-step-*")):
            raise UserError(
                f"every checkpoint in {self.folder} is damaged (see damaged-step-*): restore one from a copy, or "
                "remove the folder to start over"
            )
        return None


def complete_tags(folder: Path) -> list[str]:
    """Tags that carry COMPLETE, oldest first."""
    return sorted(path.parent.name for path in folder.glob(f"step-*/{COMPLETE}"))


def find_damage(tag_folder: Path) -> str | None:
    """What contradicts the tag's COMPLETE, in words; None when it is whole."""
    try:
        files = read_json(tag_folder / COMPLETE)["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{COMPLETE} is unreadable ({error})"
    for name, expected in files.items():
        path = tag_folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
        if sha256_file(path) != expected["sha256"]:
            return f"{name} does not match its sha256"
    return None


def _rng_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_rng(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
