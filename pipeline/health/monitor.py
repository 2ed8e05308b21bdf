"""Judges every step by its metrics: one line of warning per episode, or a stop before anything of it is saved."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import collectives, distributed
from pipeline.callbacks import Callback, is_due
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
from pipeline.health.loss_flat import LossFlat
from pipeline.health.straggler import Straggler
from pipeline.tracking.jsonl import read_points
from pipeline.transfer import Transfer

if TYPE_CHECKING:
    from pipeline.trainer import Trainer

log = logging.getLogger(__name__)
FINITE = ("train/loss", "train/grad_norm", "train/tau", "train/skipped_steps")


class Health(Callback):
    """Comes after those that measure and before those that log and save.

    Metrics travel to the host while the next step runs and are judged after it, so that no step waits for them; at
    once where the step is logged, which waits anyway, and whenever `settle` is called, as before a save.

    Every rank sees the same metrics, so all of them stop at the same step; rank 0 alone warns.
    """

    def __init__(
        self, config: RunConfig, groups: Sequence[str], warmup_steps: int, rho: float | None, hosts: Sequence[str]
    ) -> None:
        """groups: the optimizer's, by name. warmup_steps: of the rate. rho: the objective's, None where it has none.
        hosts: of the ranks."""
        health, bounds = config.health, config.temperature
        self._stop_on = health.stop_on
        self._may_overflow = config.train.precision == "fp16"
        self._every = config.train.log_every_steps
        self._pending: tuple[int, Transfer] | None = None
        self._checks: list[Check] = [
            SkippedSteps(health),
            *(FrozenGroup(group, bounds) for group in groups),
            NormalizerErrorGrows(health, config.objective),
            FeatureCollapse(health, warmup_steps),
            PrototypeCollapse(health),
            TauAtBound(health, bounds, config.objective, rho),
            LossFlat(health, warmup_steps, self._every),
            Straggler(health, hosts),
        ]
        self._norms = tuple(f"train/parameter_norm_{group}" for group in groups)
        self._reads = {*FINITE, *self._norms, *(name for check in self._checks for name in check.reads)}

    def recall(self, path: Path, step: int) -> None:
        """Tell the checks that remember what the run logged up to `step`, from rank 0's metrics.jsonl; collective.

        Nothing is said about it again.
        """
        remembering = [check for check in self._checks if check.remembers]
        names = {name for check in remembering for name in check.reads}
        logged: list[dict[str, float]] = []
        if distributed.rank() == 0 and step:
            for point in read_points(path):
                if point.step <= step:
                    known = {name: value for name, value in point.metrics.items() if name in names}
                    logged.append({**known, STEP: point.step})
        for metrics in collectives.broadcast_object(logged):
            for check in remembering:
                check.update(metrics)

    def after_step(self, trainer: Trainer, batch: Batch, output: StepOutput) -> None:
        self.settle(trainer)
        read = {name: value for name, value in output.metrics.items() if name in self._reads}
        self._pending = (trainer.progress.step, Transfer(read))
        if is_due(self._every, trainer):
            self.settle(trainer)

    def settle(self, trainer: Trainer) -> None:
        """Judge the step that has not been judged yet, if any. Raises UserError when the run has to stop for it."""
        if self._pending is None:
            return
        (step, transfer), self._pending = self._pending, None
        metrics = transfer.values()
        self._refuse_non_finite(step, metrics)
        complaints = self._examine(step, metrics, trainer.world.rank == 0)
        trainer.metrics.record("health/warnings", float(complaints))

    def _examine(self, step: int, metrics: Mapping[str, float], speak: bool) -> int:
        """The number of complaints, each said once. Raises UserError for one that `health.stop_on` names."""
        complaints = 0
        for check in self._checks:
            complaint = check.update({**metrics, STEP: step})
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

    def _refuse_non_finite(self, step: int, metrics: Mapping[str, float]) -> None:
        skipped = self._may_overflow and metrics["train/skipped_steps"]
        for name in (*FINITE, *self._norms):
            value = metrics.get(name, 0.0)
            if not math.isfinite(value) and not (skipped and name == "train/grad_norm"):
                raise UserError(
                    f"step {step}: {name} is {value}. The run stops; the last checkpoint is from "
                    "before this step. Try a lower optimizer.lr, or a higher temperature.minimum."
                )
