"""The learning rate over the steps of a run."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from pipeline.config.duration import steps_of
from pipeline.config.schema import OptimizerConfig, TemperatureConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then `cosine`, `linear` or `constant`; see OptimizerConfig. All in optimizer steps, counted from 0."""

    config: OptimizerConfig
    total_steps: int
    warmup_steps: int
    cooldown_steps: int

    def rate(self, step: int) -> float:
        """The towers' learning rate for the update number `step`."""
        peak, lowest = self.config.lr, self.config.lr_min
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        if self.config.schedule == "constant":
            left = self.total_steps - step
            return peak if left >= self.cooldown_steps else lowest + (peak - lowest) * left / self.cooldown_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        if self.config.schedule == "linear":
            return peak + (lowest - peak) * progress
        return lowest + 0.5 * (peak - lowest) * (1 + math.cos(math.pi * progress))


def build_schedule(
    config: OptimizerConfig, total_steps: int, global_batch_size: int, samples_per_epoch: int
) -> Schedule:
    """The schedule in steps; warns where warm-up and cooldown leave no step at the full rate."""
    warmup = steps_of(config.warmup, global_batch_size, samples_per_epoch)
    cooldown = steps_of(config.cooldown, global_batch_size, samples_per_epoch)
    if warmup + cooldown > total_steps:
        log.warning(
            "optimizer.warmup=%s and cooldown=%s are %d and %d steps of the run's %d: it never trains at optimizer.lr",
            *(config.warmup, config.cooldown, warmup, cooldown, total_steps),
        )
    return Schedule(config, total_steps, warmup, cooldown)


def temperature_rate(tau: float, config: TemperatureConfig) -> float:
    """tau's learning rate: constant, times `drop_factor` once tau is at or below `drop_below` (FastCLIP)."""
    return config.lr * (config.drop_factor if tau <= config.drop_below else 1.0)
