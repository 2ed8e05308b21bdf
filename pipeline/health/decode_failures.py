"""Samples that cannot be decoded, on any rank."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from pipeline import collectives
from pipeline.callbacks import Callback, is_due
from pipeline.config.schema import RunConfig
from pipeline.data.loader import Batch
from pipeline.engine.engine import StepOutput
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.trainer import Trainer


class DecodeFailures(Callback):
    """Counts them over all ranks on the steps that are logged; too many stop the run (`loader.max_failure_rate`)."""

    def __init__(self, config: RunConfig, first_step: int) -> None:
        self._every, self._batch_size = config.train.log_every_steps, config.train.global_batch_size
        self._rate = config.loader.max_failure_rate
        self._first_step = first_step
        self._here: Counter[str] = Counter()  # of this rank, by cause
        self._total = 0

    def after_step(self, trainer: Trainer, batch: Batch, output: StepOutput) -> None:
        self._here.update(batch.failures)
        if not is_due(self._every, trainer):
            return
        here = torch.tensor([self._here.total()], device=trainer.world.device)
        total = int(collectives.all_reduce(here, "sum"))
        output.metrics["data/failures"] = float(total - self._total)
        self._total = total
        samples = (trainer.progress.step - self._first_step) * self._batch_size
        if total > max(1.0, self._rate * max(samples, 1000)):
            causes: Counter[str] = sum(collectives.all_gather_object(self._here), Counter())
            raise UserError(
                f"{total} of {samples} samples could not be decoded ({dict(causes)}), more than "
                f"loader.max_failure_rate={self._rate:g} allows: run `data-prep verify NAME --again` on the corpus"
            )
