"""A rank that the others keep waiting for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from pipeline import collectives
from pipeline.callbacks import Callback, is_due
from pipeline.config.schema import HealthConfig
from pipeline.data.loader import Batch
from pipeline.engine.engine import StepOutput
from pipeline.health.checks import Check

if TYPE_CHECKING:
    from pipeline.trainer import Trainer

NOTICEABLE = 0.05  # of a step: what others wait less than is no matter


class RankTimes(Callback):
    """Each rank's own seconds per step, on the steps that are logged: waiting for its data and encoding its samples.

    What ranks do together (losses, gradients, ZeRO's updates) takes as long on all of them and says nothing. Under
    ZeRO-3 encoding gathers weights, so there a slow device hides and slow data shows.
    """

    def __init__(self, every_steps: int, first_step: int) -> None:
        self._every, self._last_step = every_steps, first_step
        self._last_time, self._last_wait = time.perf_counter(), 0.0

    def after_step(self, trainer: Trainer, batch: Batch, output: StepOutput) -> None:
        if not is_due(self._every, trainer):
            return
        step, now, waited = trainer.progress.step, time.perf_counter(), trainer.waited_seconds
        own = waited - self._last_wait + trainer.engine.encode_time.take()
        steps, seconds = step - self._last_step, now - self._last_time
        self._last_step, self._last_time, self._last_wait = step, now, waited
        if trainer.world.size > 1:
            mine = torch.tensor([[own / steps, seconds / steps]], dtype=torch.float64, device=trainer.world.device)
            output.metrics.update(compare(collectives.all_gather(mine).tolist()))


def compare(ranks: Sequence[Sequence[float]]) -> dict[str, float]:
    """ranks: (own seconds, seconds) of a step, by rank."""
    own = [seconds for seconds, _ in ranks]
    slowest, median = max(range(len(own)), key=own.__getitem__), statistics.median_low(own)
    return {
        "ranks/slowest": float(slowest),
        "ranks/own_seconds_slowest": own[slowest],
        "ranks/own_seconds_median": median,
        "ranks/waiting_share": (own[slowest] - median) / max(seconds for _, seconds in ranks),
    }


class Straggler(Check):
    """The same rank is much slower than the others, window after window."""

    symptom = "straggler"
    reads = ("ranks/slowest", "ranks/own_seconds_slowest", "ranks/own_seconds_median", "ranks/waiting_share")

    def __init__(self, config: HealthConfig, hosts: Sequence[str]) -> None:
        """hosts: by rank."""
        super().__init__()
        self._factor, self._limit, self._hosts = config.straggler_factor, config.straggler_windows, hosts
        self._rank, self._windows = -1, 0

    def _judge(self, metrics: Mapping[str, float]) -> str | None:
        rank, own, median, share = (metrics[name] for name in self.reads)
        slow = own > self._factor * median and share > NOTICEABLE
        self._windows = 0 if not slow else self._windows + 1 if rank == self._rank else 1
        self._rank = int(rank)
        if self._windows < self._limit:
            return None
        return (
            f"rank {self._rank} (host {self._hosts[self._rank]}) takes {own:.3g} s of a step for its data and "
            f"encoding, and the median rank {median:.3g} s: more than health.straggler_factor={self._factor:g} times, "
            f"{self._windows} times in a row (health.straggler_windows). The others wait for {share:.0%} of each step. "
            "Look at that node's disk, network, clock rate and neighbours; raise loader.workers if data/wait_share is "
            "high"
        )
