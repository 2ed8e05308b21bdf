"""What happens around a training step besides training: measure, diagnose, save."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline import collectives
from pipeline.config.duration import period_ends
from pipeline.config.schema import CheckpointConfig
from pipeline.data.loader import Batch
from pipeline.engine.engine import StepOutput
from pipeline.objectives import Features
from pipeline.objectives.geometry import geometry
from pipeline.objectives.normalizer_error import normalizer_error

if TYPE_CHECKING:
    from pipeline.trainer import Trainer


class Callback:
    """Called on every rank, in the order of the trainer's list. By default it does nothing."""

    def before_step(self, trainer: Trainer) -> None:
        """The next batch is here; the weights are those that it will meet."""

    def after_step(self, trainer: Trainer, batch: Batch, output: StepOutput) -> None:
        """The weights are updated and `trainer.progress` counts this step."""


def is_due(every_steps: int, trainer: Trainer) -> bool:
    """Whether so many steps are done again with this one, or all of the run's."""
    return trainer.progress.step % every_steps == 0 or trainer.progress.step == trainer.total_steps


class NormalizerError(Callback):
    """The log-normalizer error of the step's own estimates, exact over a fixed reference subset (docs/method.md).

    The subset is encoded before the step, with the encoders that the estimates were made for; ranks share the work.
    """

    def __init__(self, trainer: Trainer) -> None:
        config = trainer.config.diagnostics
        corpus, world = trainer.corpus, trainer.world
        self._every = config.every_steps
        self._size = min(config.reference_samples, len(corpus))
        chosen = np.random.default_rng(trainer.config.seed).choice(len(corpus), self._size, replace=False)
        share = -(-self._size // world.size)  # the same on every rank; what is too many is cut off when gathered
        own = np.resize(chosen, share * world.size)[world.rank * share :][:share]
        self._batch = corpus.by_sample_index(own).to(world.device)
        self._index = collectives.all_gather(self._batch.sample_index)[: self._size]
        self._features: Features | None = None

    def before_step(self, trainer: Trainer) -> None:
        step = trainer.progress.step + 1
        self._features = None
        due = step % self._every == 0 or step == trainer.total_steps
        if due and trainer.engine.objective.estimates_normalizers:
            local = trainer.engine.encode(self._batch)
            self._features = Features(*(collectives.all_gather(f)[: self._size] for f in local))

    def after_step(self, trainer: Trainer, batch: Batch, output: StepOutput) -> None:
        estimate = output.output.log_normalizer
        if self._features is None or estimate is None:
            return
        eps = trainer.engine.objective.config.eps
        error = normalizer_error(
            output.features, batch.sample_index, estimate, self._features, self._index, output.tau, eps
        )
        output.metrics["npn/log_normalizer_mse"] = error.mse
        output.metrics["npn/log_normalizer_mse_se"] = error.standard_error


class Geometry(Callback):
    """Alignment, uniformity and accuracy of the step's features, on the steps that are logged."""

    def __init__(self, every_steps: int) -> None:
        self._every = every_steps

    def after_step(self, trainer: Trainer, batch: Batch, output: StepOutput) -> None:
        if is_due(self._every, trainer):
            output.metrics.update(geometry(output.features))


class Consumption(Callback):
    """What the loader gave: samples of each corpus so far where there are several, and captions that were empty."""

    def after_step(self, trainer: Trainer, batch: Batch, output: StepOutput) -> None:
        trainer.metrics.record("data/empty_captions", float(batch.empty_captions))
        drawn = trainer.corpus.drawn(trainer.progress.samples_seen)
        if len(drawn) > 1:
            for name, count in drawn.items():
                trainer.metrics.record(f"data/samples/{name}", float(count))


class ParameterNorms(Callback):
    """The norm of each parameter group, every so many steps: equal norms show a group that does not train."""

    def __init__(self, every_steps: int) -> None:
        self._every = every_steps

    def after_step(self, trainer: Trainer, batch: Batch, output: StepOutput) -> None:
        if trainer.progress.step % self._every == 0:
            for group, norm in trainer.engine.parameter_norms().items():
                output.metrics[f"train/parameter_norm_{group}"] = norm


class Logging(Callback):
    """Reduces the metrics every so many steps and hands them to the tracker; what that costs a step is one of them."""

    def __init__(self, every_steps: int, first_step: int) -> None:
        self._every = every_steps
        self._last_step = first_step
        self._last_time = time.perf_counter()
        self._own_seconds = 0.0

    def after_step(self, trainer: Trainer, batch: Batch, output: StepOutput) -> None:
        began = time.perf_counter()
        trainer.metrics.record_all(output.metrics)
        self._own_seconds += time.perf_counter() - began
        if is_due(self._every, trainer):
            if trainer.world.device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            self._log(trainer, trainer.progress.step, began)
            self._own_seconds = time.perf_counter() - began  # told with the next point

    def _log(self, trainer: Trainer, step: int, now: float) -> None:
        steps, seconds = step - self._last_step, now - self._last_time
        self._last_step, self._last_time = step, now
        metrics = trainer.metrics.flush()
        metrics["train/samples_per_second"] = steps * trainer.config.train.global_batch_size / seconds
        metrics["train/epoch"] = trainer.progress.samples_seen / len(trainer.corpus)
        metrics["system/tracking_seconds"] = self._own_seconds / steps
        metrics["system/tracking_share"] = self._own_seconds / seconds
        metrics["ranks/count"] = float(trainer.world.size)
        metrics["ranks/gpus"] = float(trainer.world.size) if trainer.world.device.type == "cuda" else 0.0
        for seconds_name, share_name in (
            ("data/wait_seconds", "data/wait_share"),
            ("npn/seconds", "npn/share"),
        ):
            if seconds_name in metrics:
                metrics[share_name] = metrics[seconds_name] * steps / seconds
        trainer.tracker.log(metrics, step, trainer.progress.samples_seen)


class Saving(Callback):
    """A checkpoint whenever `every` has gone by, or so many minutes, at the end, and where one is to be evaluated.

    The clock is rank 0's, so that all ranks save together; it and the save in the background are looked at every
    `look_every_steps`.
    """

    def __init__(self, config: CheckpointConfig, look_every_steps: int, evaluate_every: str | None = None) -> None:
        self._periods = [period for period in (config.every, evaluate_every) if period is not None]
        self._every_seconds = 60 * config.every_minutes if config.every_minutes else math.inf
        self._look_every_steps = look_every_steps
        self._last = time.monotonic()

    def after_step(self, trainer: Trainer, batch: Batch, output: StepOutput) -> None:
        step = trainer.progress.step
        due = step == trainer.total_steps or self._period_ends(trainer, step)
        if not due and step % self._look_every_steps == 0:
            trainer.checkpointer.poll()
            if math.isfinite(self._every_seconds):
                due = collectives.broadcast_object(time.monotonic() - self._last >= self._every_seconds)
        if due:
            trainer.save(last=step == trainer.total_steps)
            self._last = time.monotonic()

    def _period_ends(self, trainer: Trainer, step: int) -> bool:
        sizes = (trainer.config.train.global_batch_size, len(trainer.corpus))
        return any(period_ends(period, step, *sizes) for period in self._periods)
