"""The training loop. It knows verbs (step, save, log), not losses."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pipeline import collectives
from pipeline.callbacks import Callback, Consumption, Geometry, Logging, NormalizerError, ParameterNorms, Saving
from pipeline.config.schema import RunConfig
from pipeline.data.consumed import ConsumedDigest
from pipeline.data.loader import Batch, Corpus, StepPositions, build_loader
from pipeline.distributed import World
from pipeline.engine.checkpoint import Checkpointer
from pipeline.engine.deepspeed_config import local_batch_size
from pipeline.engine.engine import TrainEngine
from pipeline.engine.resume import restore
from pipeline.engine.resume_evidence import refuse_changed, refuse_non_finite, resume_evidence
from pipeline.engine.retention import Retention
from pipeline.errors import UserError
from pipeline.evaluation.during_training import Evaluations
from pipeline.health import DecodeFailures, Health, Heartbeat, RankTimes
from pipeline.models.two_tower import build_tokenizer, image_size, open_clip_config
from pipeline.preemption import StopRequest, deaf_children
from pipeline.same_run import refuse_other_run
from pipeline.tracking.base import Tracker
from pipeline.tracking.metrics import MetricBuffer

log = logging.getLogger(__name__)
METRICS = "metrics.jsonl"


@dataclass
class Progress:
    """How far the run is. order_digest: evidence of which samples, in which order (pipeline.data.consumed)."""

    step: int = 0
    samples_seen: int = 0
    order_digest: str = ""


class Trainer:
    """One training run in `folder` (RUN/train), new or continued from its newest whole checkpoint; collective.

    heartbeat: is told what this rank does, for whoever watches.
    """

    def __init__(self, config: RunConfig, folder: Path, world: World, heartbeat: Heartbeat | None = None) -> None:
        model_config = open_clip_config(config.model)
        tokenizer = build_tokenizer(model_config)
        self.config, self.folder, self.world = config, folder, world
        self.heartbeat = heartbeat or Heartbeat()
        self.corpus = Corpus(config.loader, config.seed, image_size(model_config), tokenizer)
        local_batch_size(config, world.size)  # refuses ranks that do not divide the batch, before the towers are made
        self.total_steps = total_steps(config, len(self.corpus))
        self.engine = TrainEngine(config, world, len(self.corpus), self.total_steps)
        self.metrics = MetricBuffer()
        keep, keep_every = config.checkpoint.keep, config.checkpoint.keep_every
        retention = Retention(keep, keep_every, config.train.global_batch_size, len(self.corpus))
        checkpoints = folder / "checkpoints"
        self.checkpointer = Checkpointer(checkpoints, config.checkpoint, retention, world, self.metrics)
        self.evaluations = Evaluations(config, folder, self.checkpointer, len(self.corpus), world.rank)
        self.progress = self._restore(checkpoints)
        self.consumed = ConsumedDigest(self.progress.order_digest)
        self.waited_seconds = 0.0  # for data, in this life
        engine = self.engine
        self.hosts = collectives.all_gather_object(socket.gethostname())  # by rank
        self.health = Health(
            config, engine.parameter_groups, engine.schedule.warmup_steps, engine.objective.rho, self.hosts
        )
        self.tracker: Tracker

    def fit(self, tracker: Tracker) -> Literal["finished", "preempted"]:
        """Train to the end, or until asked to stop; either way what was learned is saved."""
        self.tracker = tracker
        stop = StopRequest(self.folder.parent, self.world, self.config.checkpoint.stop_within_seconds)
        try:
            status = self._loop(stop)
            self._next("finishing the checkpoint")
            self.checkpointer.finish()
            if status == "finished":
                self.evaluations.finish(tracker, partial(self._may_wait, stop))
        except BaseException:
            self.checkpointer.close()
            raise
        finally:
            self.evaluations.close()
        return status

    def _may_wait(self, stop: StopRequest) -> bool:
        self._next("waiting for evaluations")
        return not stop.asked

    def _loop(self, stop: StopRequest) -> Literal["finished", "preempted"]:
        callbacks = self._callbacks()
        self.health.recall(self.folder / METRICS, self.progress.step)
        self.evaluations.recall(self.folder / METRICS, self.progress.step)
        for batch in self._timed(self._batches()):
            for callback in callbacks:
                self._next(f"in {type(callback).__name__} for the next")
                callback.before_step(self)
            self._next("in a training step")
            output = self.engine.step(batch)
            self.progress.step += 1
            self.progress.samples_seen += self.config.train.global_batch_size
            self.consumed.add(batch.sample_index)
            for callback in callbacks:
                self._next(f"in {type(callback).__name__}")
                callback.after_step(self, batch, output)
            self._next("asking whether to stop")
            if self.progress.step < self.total_steps and stop.agreed():
                log.warning("stopping at step %d: %s", self.progress.step, stop.reason)
                self.save()
                return "preempted"
        return "finished"

    def save(self, last: bool = False) -> None:
        """Begin a checkpoint of this moment; collective. last: no step follows."""
        self.health.settle(self)
        self._next("saving")
        evidence = resume_evidence(self.engine)
        refuse_non_finite(evidence, self.progress.step)
        self.progress.order_digest = self.consumed.sync()
        state = {
            **asdict(self.progress),
            "evidence": evidence,
            "manifest_fingerprint": self.corpus.fingerprint,
            "config": self.config.model_dump(mode="json"),
        }
        self.checkpointer.save(self.engine, state, last)

    def _next(self, doing: str) -> None:
        self.heartbeat.next(doing, self.progress.step)

    def _batches(self) -> Iterable[Batch]:
        positions = StepPositions(
            self.config.train.global_batch_size,
            self.world.rank,
            self.world.size,
            self.progress.step,
            self.total_steps,
        )
        return build_loader(self.corpus, positions, self.config.loader, self.world.device.type == "cuda")

    def _timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches on this rank's device; the time that the loop waits for each is a metric."""
        with deaf_children():
            iterator = iter(batches)
        while True:
            self._next("waiting for data")
            started = time.perf_counter()
            try:
                batch = next(iterator, None)
            except UserError as error:  # from a worker it comes with the worker's traceback before the message
                raise UserError(str(error).rsplit("UserError: ", 1)[-1]) from None
            except (ConnectionError, EOFError):  # a worker died while it sent this batch
                time.sleep(1)  # torch's handler of SIGCHLD knows which and why, and raises that here
                raise
            if batch is None:
                return
            batch = batch.to(self.world.device)
            seconds = time.perf_counter() - started
            self.waited_seconds += seconds
            self.metrics.record("data/wait_seconds", seconds)
            yield batch

    def _callbacks(self) -> list[Callback]:
        config = self.config
        return [
            NormalizerError(self),
            Geometry(config.train.log_every_steps),
            Consumption(),
            ParameterNorms(config.diagnostics.every_steps),
            RankTimes(config.train.log_every_steps, self.progress.step),
            DecodeFailures(config, self.progress.step),
            self.health,
            Logging(config.train.log_every_steps, self.progress.step),
            Saving(config.checkpoint, config.train.log_every_steps, config.evaluate_during.every),
            self.evaluations,
        ]

    def _restore(self, checkpoints: Path) -> Progress:
        state = restore(self.engine, checkpoints)
        if state is None:
            return Progress()
        refuse_other_run(state, self.config, self.corpus.fingerprint, self.folder)
        self._refuse_changed(state)
        return Progress(state["step"], state["samples_seen"], state["order_digest"])

    def _refuse_changed(self, state: dict[str, Any]) -> None:
        where = f"{self.folder / 'checkpoints'} at step {state['step']}"
        seen = state["step"] * self.config.train.global_batch_size
        resumed = {**resume_evidence(self.engine), "samples seen": seen}
        refuse_changed({**state["evidence"], "samples seen": state["samples_seen"]}, resumed, where)


def total_steps(config: RunConfig, samples_per_epoch: int) -> int:
    """Optimizer steps of the whole run. Raises UserError when not one batch fits."""
    train = config.train
    if train.steps is not None:
        return train.steps
    samples = train.samples if train.samples is not None else (train.epochs or 0.0) * samples_per_epoch
    steps = math.floor(samples / train.global_batch_size)
    if steps == 0:
        raise UserError(
            f"train: {samples:.0f} samples are less than one global batch of {train.global_batch_size}: "
            "train for longer"
        )
    return steps
