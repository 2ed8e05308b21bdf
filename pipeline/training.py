"""The command `neuclip train`: one rank's life, from the environment to the exit status."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from pipeline import collectives, distributed
from pipeline.code_version import code_version
from pipeline.config.schema import RunConfig
from pipeline.distributed import World
from pipeline.errors import UserError
from pipeline.files import atomic_open, write_json
from pipeline.health.watchdog import Watchdog
from pipeline.locks import exclusive
from pipeline.stopping import EXIT_STOPPED, STOP_FILE
from pipeline.tracking.base import NullTracker, Status, Tracker
from pipeline.tracking.system import watched
from pipeline.tracking.training import training_tracker
from pipeline.trainer import METRICS, Trainer
from pipeline.training_summary import summarise

log = logging.getLogger(__name__)


def train(config: RunConfig, run_dir: Path) -> int:
    """Train RUN/train to its end, new or continued; every rank calls this. Returns the exit status.

    0: finished, RUN/train/summary.json says how. 75: stopped on request, the same command goes on.
    Raises UserError when the run cannot start, or stops because it is not healthy; PeerLost when other ranks are gone.
    A rank that hangs ends the process with EXIT_LOST, 76.
    """
    stop_file = run_dir / STOP_FILE
    if stop_file.exists():
        raise UserError(f"{stop_file} exists: somebody wants this run to stop. Remove it to go on.")
    # Collectives have a limit of their own, which knows nothing of steps and ranks: let the watchdog speak first.
    world = distributed.init(timeout_seconds=max(1800, 2 * config.health.hang_seconds))
    folder = run_dir / "train"
    with _alone(folder, world), Watchdog(config.health, folder, world) as watchdog:
        try:
            with watchdog.explaining():
                trainer = Trainer(config, folder, world, watchdog.heartbeat)
                _announce(trainer)
                return _fit(trainer, world, run_dir)
        finally:
            distributed.shutdown()


@contextmanager
def _alone(folder: Path, world: World) -> Iterator[None]:
    """Rank 0 holds the lock of RUN/train; collective. Raises UserError, on every rank, where another run has it.

    Until then nothing is written there, not even a heartbeat: it would be taken for the other run's.
    """
    with ExitStack() as lock:
        problem = None
        if world.rank == 0:
            try:
                lock.enter_context(exclusive(folder / ".lock", str(folder)))
            except (UserError, OSError) as error:
                problem = str(error)
        problem = collectives.broadcast_object(problem)
        if problem is not None:
            distributed.shutdown()
            raise UserError(problem)
        yield


def _fit(trainer: Trainer, world: World, run_dir: Path) -> int:
    nodes = list(dict.fromkeys(trainer.hosts))
    tracker: Tracker = NullTracker()
    if world.rank == 0:
        start = (trainer.progress.step, trainer.progress.samples_seen)
        told = {**code_version(), "nodes": nodes, **_told(trainer)}
        spool = trainer.folder / METRICS
        tracker = training_tracker(trainer.config.tracking, run_dir, spool, start, trainer.total_steps, told)
    status: Status = "failed"
    try:
        with _watched(trainer, nodes):
            status = trainer.fit(tracker)
        trainer.heartbeat.next("closing the tracker", trainer.progress.step)
    finally:
        tracker.close(status)
    if status == "preempted":
        if world.rank == 0:
            done = f"step {trainer.progress.step} of {trainer.total_steps}"
            print(f"stopped: on request, after {done}, and saved", flush=True)
        return EXIT_STOPPED
    if world.rank == 0:
        write_json(trainer.folder / "summary.json", summarise(trainer))
    return 0


def _told(trainer: Trainer) -> dict[str, Any]:
    """What there is to say of a life of this run, besides where and when."""
    corpus = trainer.corpus
    corpora = [
        {
            "name": name,
            "source": manifest.folder,
            "fingerprint": manifest.fingerprint,
            "samples": manifest.total_samples,
        }
        for name, manifest in zip(corpus.names, corpus.reader.manifests, strict=True)
    ]
    return {"world_size": trainer.world.size, "corpus_fingerprint": corpus.fingerprint, "corpora": corpora}


def _watched(trainer: Trainer, nodes: list[str]) -> AbstractContextManager[None]:
    """The first rank of each node says how busy that is."""
    if trainer.world.local_rank != 0:
        return nullcontext()
    node, progress = nodes.index(trainer.hosts[trainer.world.rank]), trainer.progress
    every_seconds = trainer.config.tracking.system_every_seconds
    return watched(trainer.folder, node, lambda: (progress.step, progress.samples_seen), every_seconds)


def _announce(trainer: Trainer) -> None:
    if trainer.world.rank != 0:
        return
    with atomic_open(trainer.folder / "recipe.yaml", "w") as stream:
        yaml.safe_dump(trainer.config.model_dump(mode="json"), stream, sort_keys=False)
    log.info(
        "%s with %s: %.1f M parameters, %d samples, %d steps of %d on %d x %s%s",
        trainer.config.model.name,
        trainer.config.objective,
        trainer.engine.parameter_count / 1e6,
        len(trainer.corpus),
        trainer.total_steps,
        trainer.config.train.global_batch_size,
        trainer.world.size,
        trainer.world.device.type,
        f", continuing at step {trainer.progress.step}" if trainer.progress.step else "",
    )
