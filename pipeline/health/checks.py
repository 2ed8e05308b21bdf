"""What can be wrong with a run whose numbers are finite. Each check sees the metrics of a step, nothing else."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import ClassVar

from pipeline.config.schema import HealthConfig, Symptom, TemperatureConfig

STEP = "step"  # among the metrics: the number of the step
WINDOW = 3  # log-normalizer errors in a median


class Check(ABC):
    """One symptom. It speaks once per episode: again only after a measurement without it.

    reads: the metrics that it judges by; a step that lacks one of them measured nothing. remembers: whether its verdict
    rests on the whole run, so that a resumed one tells it what was logged before.
    """

    symptom: ClassVar[Symptom]
    remembers: ClassVar[bool] = False
    reads: tuple[str, ...]

    def __init__(self) -> None:
        self._ill = False

    def update(self, metrics: Mapping[str, float]) -> str | None:
        """What is wrong, in words, when an episode starts with this step; else None."""
        if any(name not in metrics for name in self.reads):
            return None
        complaint = self._judge(metrics)
        starts = complaint is not None and not self._ill
        self._ill = complaint is not None
        return complaint if starts else None

    @abstractmethod
    def _judge(self, metrics: Mapping[str, float]) -> str | None:
        """What is wrong: value, threshold and what to do; None when nothing is."""


class TauAtBound(Check):
    """A tau that is learned has stayed at a bound of its range for so many steps."""

    symptom = "tau_at_bound"
    reads = ("train/tau", "train/tau_grad")

    def __init__(self, config: HealthConfig, bounds: TemperatureConfig, objective: str, rho: float | None) -> None:
        """rho: the objective's, None where it has none."""
        super().__init__()
        self._limit, self._bounds, self._objective, self._rho = config.tau_at_bound_steps, bounds, objective, rho
        self._bound: str | None = None
        self._steps = 0

    def _judge(self, metrics: Mapping[str, float]) -> str | None:
        bound = at_bound(metrics["train/tau"], self._bounds) if metrics["train/tau_grad"] else None
        self._steps = self._steps + 1 if bound and bound == self._bound else int(bound is not None)
        self._bound = bound
        if bound is None or self._steps < self._limit:
            return None
        value = getattr(self._bounds, bound)
        return (
            f"train/tau {metrics['train/tau']:.4g} has been at temperature.{bound}={value:g} for {self._steps} "
            f"steps (health.tau_at_bound_steps={self._limit}): {self._advice(bound)}"
        )

    def _advice(self, bound: str) -> str:
        at_minimum = bound == "minimum"
        widen = f"{'lower' if at_minimum else 'raise'} temperature.{bound}"
        if self._rho is None:
            return f"{widen}, or lower temperature.lr if tau came here early"
        size, change = ("large", "lower") if at_minimum else ("small", "raise")
        name = f"objectives.{self._objective}.rho"
        return f"{name}={self._rho:g} is too {size} for this corpus: {change} it, or {widen}"


def at_bound(tau: float, bounds: TemperatureConfig) -> str | None:
    """Which bound tau is at, `minimum` or `maximum`: within 1 %, since an optimizer keeps jittering there."""
    if tau <= bounds.minimum * 1.01:
        return "minimum"
    return "maximum" if tau >= bounds.maximum * 0.99 else None


class SkippedSteps(Check):
    """Step after step overflows and is left out."""

    symptom = "skipped_steps"
    reads = ("train/skipped_steps",)

    def __init__(self, config: HealthConfig) -> None:
        super().__init__()
        self._limit = config.skipped_steps
        self._steps = 0

    def _judge(self, metrics: Mapping[str, float]) -> str | None:
        self._steps = self._steps + 1 if metrics["train/skipped_steps"] else 0
        if self._steps < self._limit:
            return None
        return (
            f"train/skipped_steps: {self._steps} updates in a row were skipped because gradients overflowed "
            f"(health.skipped_steps={self._limit}): set train.precision=bf16 or fp32, or lower optimizer.lr"
        )


class FrozenGroup(Check):
    """The parameters of a group that should train are what they were at the measurement before."""

    symptom = "frozen_group"

    def __init__(self, group: str, bounds: TemperatureConfig) -> None:
        """group: of the optimizer. bounds: of tau."""
        super().__init__()
        self._group, self._bounds = group, bounds
        self._norm, self._rate = f"train/parameter_norm_{group}", learning_rate_name(group)
        self.reads = (self._norm, self._rate)
        if group == "temperature":
            self.reads += ("train/tau", "train/tau_grad")
        self._before: float | None = None
        self._highest_rate = 0.0

    def _judge(self, metrics: Mapping[str, float]) -> str | None:
        norm, before, rate = metrics[self._norm], self._before, metrics[self._rate]
        self._before, self._highest_rate = norm, max(self._highest_rate, rate)
        # At the end of a schedule a step can be smaller than fp32 resolves: of a bias near -10, say.
        if norm != before or rate <= 0.01 * self._highest_rate or self._tau_is_held(metrics):
            return None
        return (
            f"{self._norm} is {norm:.9g} as diagnostics.every_steps before, a change of 0 (threshold: any): the "
            f"parameter group {self._group!r} is frozen at a learning rate of {metrics[self._rate]:.3g}. Look for a "
            "detach in the model or the objective, and at the learning rate"
        )

    def _tau_is_held(self, metrics: Mapping[str, float]) -> bool:
        """By a bound, or by an objective that wants it constant."""
        if self._group != "temperature":
            return False
        return metrics["train/tau_grad"] == 0 or at_bound(metrics["train/tau"], self._bounds) is not None


def learning_rate_name(group: str) -> str:
    """The metric with the learning rate of an optimizer group."""
    return "train/lr_temperature" if group == "temperature" else "train/lr"


class NormalizerErrorGrows(Check):
    """The median of the last log-normalizer errors against the lowest such median of the run."""

    symptom = "normalizer_error"
    remembers = True
    reads = ("npn/log_normalizer_mse",)

    def __init__(self, config: HealthConfig, objective: str) -> None:
        super().__init__()
        self._factor, self._floor = config.normalizer_error_factor, config.normalizer_error_floor
        self._of_network = " Take more inner steps, or restart it more often (objectives.neuclip.npn);"
        self._of_network = self._of_network if objective == "neuclip" else ""
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._lowest = float("inf")

    def _judge(self, metrics: Mapping[str, float]) -> str | None:
        self._last.append(metrics["npn/log_normalizer_mse"])
        if len(self._last) < WINDOW:
            return None
        median = statistics.median(self._last)
        self._lowest = min(self._lowest, median)
        threshold = max(self._floor, self._factor * self._lowest)
        if median <= threshold:
            return None
        return (
            f"npn/log_normalizer_mse {median:.3g} (median of {WINDOW}) is above {threshold:.3g}, "
            f"health.normalizer_error_factor={self._factor:g} times the lowest so far, {self._lowest:.3g}: the "
            f"normalizers no longer follow the encoders.{self._of_network} Use a larger train.global_batch_size, or "
            "lower optimizer.lr"
        )


class FeatureCollapse(Check):
    """All embeddings of a modality are nearly the same, after the warm-up: fresh towers may start like that."""

    symptom = "feature_collapse"
    reads = ("train/uniformity_image", "train/uniformity_text", STEP)

    def __init__(self, config: HealthConfig, warmup_steps: int) -> None:
        super().__init__()
        self._maximum, self._warmup_steps = config.uniformity_maximum, warmup_steps

    def _judge(self, metrics: Mapping[str, float]) -> str | None:
        worst = max(self.reads[:2], key=lambda name: metrics[name])
        if metrics[worst] <= self._maximum or metrics[STEP] <= self._warmup_steps:
            return None
        return (
            f"{worst} {metrics[worst]:.4g} is above health.uniformity_maximum={self._maximum:g}: the embeddings "
            "have collapsed to a point. Lower optimizer.lr, lengthen optimizer.warmup, or raise temperature.init"
        )


class PrototypeCollapse(Check):
    """The prototypes of the normalizer-prediction network lie much closer together than the embeddings."""

    symptom = "prototype_collapse"
    reads = ("npn/spread_ratio",)

    def __init__(self, config: HealthConfig) -> None:
        super().__init__()
        self._minimum = config.spread_ratio_minimum

    def _judge(self, metrics: Mapping[str, float]) -> str | None:
        ratio = metrics["npn/spread_ratio"]
        if ratio >= self._minimum:
            return None
        return (
            f"npn/spread_ratio {ratio:.3g} is below health.spread_ratio_minimum={self._minimum:g}: the prototypes "
            "have collapsed. Restart them more often (objectives.neuclip.npn.restart_every) or lower "
            "objectives.neuclip.npn.lr"
        )
