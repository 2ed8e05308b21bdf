"""Judges every step by its metrics: one line of warning per episode, or a stop before anything of it is saved."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from pipeline.config.schema import RunConfig
from pipeline.data.loader import Batch
from pipeline.engine.engine import StepOutput
from pipeline.errors import UserError
from pipeline.health.checks import (
    STEP,
    Check,
    FeatureCollapse,
    FrozenGroup,
    NormalizerErrorGrows,
    PrototypeCollapse,
    SkippedSteps,
    TauAtBound,
)

if TYPE_CHECKING:
    from pipeline.trainer import Trainer

log = logging.getLogger(__name__)


class Health:
    """A callback, after those that measure and before those that log and save.

    Every rank sees the same metrics, so all of them stop at the same step; rank 0 alone warns.
    """

    def __init__(self, config: RunConfig, groups: list[str], warmup_steps: int, rho: float | None) -> None:
        """groups: the optimizer's, by name. warmup_steps: of the rate. rho: the objective's, None where it has none."""
        health, bounds = config.health, config.temperature
        self._stop_on = health.stop_on
        self._may_overflow = config.train.precision == "fp16"
        self._max_failure_rate = config.loader.max_failure_rate
        self._failures = 0
        self._samples = 0
        self._checks: list[Check] = [
            SkippedSteps(health),
            *(FrozenGroup(group, bounds) for group in groups),
            NormalizerErrorGrows(health, config.objective),
            FeatureCollapse(health, warmup_steps),
            PrototypeCollapse(health),
            TauAtBound(health, bounds, config.objective, rho),
        ]

    def before_step(self, trainer: Trainer) -> None:
        pass

    def after_step(self, trainer: Trainer, batch: Batch, output: StepOutput) -> None:
        step = trainer.progress.step
        self._refuse_non_finite(step, output)
        self._refuse_failures(trainer, batch)
        trainer.metrics.record("health/warnings", float(self._examine(step, output, trainer.world.rank == 0)), "sum")

    def _examine(self, step: int, output: StepOutput, speak: bool) -> int:
        """The number of complaints, each said once. Raises UserError for one that `health.stop_on` names."""
        read = {name for check in self._checks for name in check.reads}
        metrics = {name: float(output.metrics[name]) for name in read if name in output.metrics}
        metrics[STEP] = step
        complaints = 0
        for check in self._checks:
            complaint = check.update(metrics)
            if complaint is None:
                continue
            if check.symptom in self._stop_on:
                raise UserError(
                    f"step {step}: {complaint}. The run stops, as health.stop_on has {check.symptom}; the last "
                    "checkpoint is from before this step."
                )
            complaints += 1
            if speak:
                log.warning("step %d: %s", step, complaint)
        return complaints

    def _refuse_non_finite(self, step: int, output: StepOutput) -> None:
        skipped = self._may_overflow and output.metrics["train/skipped_steps"]
        for name in ("train/loss", "train/grad_norm", "train/tau"):
            value = float(output.metrics[name])
            if not math.isfinite(value) and not (skipped and name == "train/grad_norm"):
                raise UserError(
                    f"step {step}: {name} is {value}. The run stops; the last checkpoint is from "
                    "before this step. Try a lower optimizer.lr, or a higher temperature.minimum."
                )

    def _refuse_failures(self, trainer: Trainer, batch: Batch) -> None:
        self._failures += batch.failures.total()
        self._samples += len(batch.sample_index)
        trainer.metrics.record("data/failures", float(batch.failures.total()), "sum")
        if self._failures > max(1.0, self._max_failure_rate * max(self._samples, 1000)):
            raise UserError(
                f"{self._failures} of {self._samples} samples could not be decoded (last: {dict(batch.failures)}), "
                "more than loader.max_failure_rate allows: run `data-prep verify NAME --again` on the corpus"
            )
