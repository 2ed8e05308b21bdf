"""Means with what is known of their noise, and differences between them with intervals.

The noise of several runs that differ in their seed is seen between them. That of a single run is not: for it there is
only that of the task's images, as if each were answered right or wrong by chance (binomial). It says nothing of what
another seed would give.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """mean: of `runs` runs. variance: of the mean, None where nothing is known of it. freedom: degrees of freedom."""

    mean: float
    runs: int
    variance: float | None = None
    freedom: float = math.inf

    @property
    def standard_error(self) -> float | None:
        return None if self.variance is None else math.sqrt(self.variance)


@dataclass(frozen=True)
class Difference:
    """value: of two means. low, high: its 95 % interval, None where the noise of one of them is not known."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def of_seeds(values: Sequence[float]) -> Estimate:
    """The mean of several runs and its standard error, s / sqrt(n)."""
    if len(values) < 2:
        raise ValueError("one run tells nothing of the noise between runs")
    return Estimate(statistics.fmean(values), len(values), statistics.variance(values) / len(values), len(values) - 1)


def of_images(score: float, images: int | None) -> Estimate:
    """A single run's score with the noise of its images; Agresti and Coull's, so that 0 and 1 are not certain.

    images: that the task has; None where it is not known.
    """
    if not images:
        return Estimate(score, 1)
    adjusted = (score * images + 2) / (images + 4)
    return Estimate(score, 1, adjusted * (1 - adjusted) / (images + 4))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over tasks of a single run, whose noises are independent."""
    variances = [estimate.variance for estimate in estimates if estimate.variance is not None]
    known = len(variances) == len(estimates)
    variance = sum(variances) / len(estimates) ** 2 if known else None
    return Estimate(statistics.fmean(estimate.mean for estimate in estimates), 1, variance)


def difference(ours: Estimate, baseline: Estimate) -> Difference:
    """ours - baseline; the interval is Student's, with the degrees of freedom of Welch and Satterthwaite."""
    value = ours.mean - baseline.mean
    if ours.variance is None or baseline.variance is None:
        return Difference(value)
    variance = ours.variance + baseline.variance
    if variance == 0:
        return Difference(value, value, value)
    parts = ((ours.variance, ours.freedom), (baseline.variance, baseline.freedom))
    uncertain = sum(part**2 / freedom for part, freedom in parts)  # of the variance itself; 0 where it is known
    reach = _quantile(variance**2 / uncertain if uncertain else math.inf) * math.sqrt(variance)
    return Difference(value, value - reach, value + reach)


def _quantile(freedom: float) -> float:
    from scipy.special import ndtri, stdtrit  # takes a second: only when something is compared

    tail = (1 + CONFIDENCE) / 2
    return float(ndtri(tail) if math.isinf(freedom) else stdtrit(freedom, tail))
