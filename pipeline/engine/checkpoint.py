"""Saving a run on all ranks together, in the background, and what happens when the disk does not take it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline import collectives
from pipeline.config.schema import CheckpointConfig
from pipeline.distributed import World
from pipeline.engine.background import Save
from pipeline.engine.engine import TrainEngine
from pipeline.engine.retention import Retention
from pipeline.engine.snapshot import size, take
from pipeline.engine.tags import complete_tags, discard, remove, tag_of
from pipeline.errors import UserError
from pipeline.files import free_bytes
from pipeline.tracking.metrics import MetricBuffer

log = logging.getLogger(__name__)
LINGER_SECONDS = 60  # that an error waits for a save which is on its way


class Checkpointer:
    """Saves a TrainEngine with its objective, RNG and trainer state to `folder`, the run's `checkpoints`.

    One save is on its way at a time. Its failure is agreed on by all ranks, in `save`, `poll` or `finish`, and is a
    UserError or, under `on_failure: continue`, a warning; the tags before it stay. Metrics: `checkpoint/seconds` of
    each save, `checkpoint/blocked_seconds` that the loop waited, `checkpoint/failures`.
    """

    def __init__(
        self, folder: Path, config: CheckpointConfig, retention: Retention, world: World, metrics: MetricBuffer
    ) -> None:
        self._folder, self._config, self._retention = folder, config, retention
        self._world, self._metrics = world, metrics
        self._save: Save | None = None  # on its way
        self._newest: str | None = None  # begun, and not known to have failed
        self._problem: str | None = None  # of the last save, where it failed
        self.held: frozenset[str] = frozenset()  # tags that somebody reads, which stay for now; rank 0's counts

    def save(self, engine: TrainEngine, trainer_state: dict[str, Any], last: bool = False) -> None:
        """Begin to save this moment, after the save before it has ended; collective.

        trainer_state: JSON-able, the same on every rank. last: no step follows, so nothing is copied for it and the
        save is waited for. Raises UserError as the class says.
        """
        background = self._config.background and not last
        tag = tag_of(engine.step_number)
        with self._blocking():
            self._settle()
            if tag == self._newest:
                return
            snapshot = take(engine, trainer_state, self._folder, tag, copies=background)
            problem = self._lack_of_space(size(snapshot))
            if problem is not None:
                self._fail(tag, problem)
                return
            world = self._world
            self._save = Save(snapshot, self._folder, tag, world.rank, world.size, self.remove_superseded)
            self._newest = tag
            if not background:
                self._settle()

    def poll(self) -> None:
        """See what became of the save that is on its way, without waiting for it; collective while there is one."""
        if self._save is None:
            return
        with self._blocking():
            state = torch.tensor([not self._save.ended, self._save.problem is not None], device=self._world.device)
            busy, failed = collectives.all_reduce(state.float(), "max").tolist()
            if failed or not busy:
                self._settle()

    def finish(self) -> None:
        """Wait until the last save is complete; collective. Raises UserError when it failed, whatever `on_failure`."""
        with self._blocking():
            self._settle()
        if self._problem is not None:
            raise UserError(f"{self._problem}\nThe run ends here, and what it learned since the last one is not saved")

    def close(self) -> None:
        """For an end by an error, perhaps of this rank alone: wait for a save that is on its way, but not for ever."""
        if self._save is not None:
            self._save.wait(LINGER_SECONDS)

    def _settle(self) -> None:
        """Wait for the save that is on its way, agree on what became of it, act on that; collective."""
        if self._save is None:
            return
        save, self._save = self._save, None
        save.wait_until_written()
        problems = [problem for problem in collectives.all_gather_object(save.problem) if problem is not None]
        if problems:
            save.abandon()
        save.wait()
        if not problems:
            published = collectives.broadcast_object(save.problem)  # rank 0 has done that meanwhile
            problems = [] if published is None else [published]
        self._metrics.record("checkpoint/seconds", save.seconds)
        if problems:
            self._fail(save.tag, "; ".join(problems))
        else:
            self._problem = None

    def _fail(self, tag: str, problem: str) -> None:
        """The same on every rank, when none is writing any more."""
        if self._world.rank == 0:
            discard(self._folder, tag)
        self._newest = None
        self._problem = f"checkpoint {self._folder / tag} could not be written: {problem}"
        self._metrics.record("checkpoint/failures", 1.0)
        if self._config.on_failure == "stop":
            raise UserError(
                f"{self._problem}\nThe checkpoints before it are whole. Mend the disk and run the same command again, "
                "or let the run go on without with checkpoint.on_failure=continue"
            )
        log.error("CHECKPOINT FAILED, the run goes on: %s", self._problem)

    def _lack_of_space(self, own_bytes: int) -> str | None:
        """What is wrong, the same on every rank; collective."""
        own = torch.tensor([float(own_bytes)], dtype=torch.float64, device=self._world.device)
        needed = collectives.all_reduce(own, "sum").item()
        problem = None
        if self._world.rank == 0:
            try:
                free = free_bytes(self._folder)
            except OSError as error:
                problem = str(error)
            else:
                if free < needed:
                    problem = f"it needs {needed / 1e9:.3f} GB and {free / 1e9:.3f} GB are free"
        return collectives.broadcast_object(problem)

    def remove_superseded(self) -> None:
        """Remove the tags that retention lets go and nobody holds; for rank 0, while no save is on its way."""
        for tag in self._retention.superseded(complete_tags(self._folder)):
            if tag not in self.held:
                remove(self._folder, tag)

    @contextmanager
    def _blocking(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._metrics.record("checkpoint/blocked_seconds", time.perf_counter() - started)
