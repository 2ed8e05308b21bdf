"""What the inner steps minimise, as a function of alpha and of r = log(eps + g) of the batch."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from pipeline.models.log_normalizer.config import LogNormalizerConfig


class Fit(Protocol):
    """tau times the mean over anchors of a function of (alpha, r), (2, G) each, summed over sides."""

    def value(self, alpha: Tensor, log_target: Tensor) -> Tensor:
        """The mean, a scalar."""

    def slope(self, alpha: Tensor, log_target: Tensor) -> Tensor:
        """Its derivative for alpha, (2, G)."""


class Unified:
    """NeuCLIP's own objective: exp(r - alpha) + alpha - 1, the exponential continued linearly from `ratio_bound`."""

    def __init__(self, ratio_bound: float) -> None:
        self.log_ratio_bound = math.log(ratio_bound)

    def value(self, alpha: Tensor, log_target: Tensor) -> Tensor:
        excess = (log_target - alpha - self.log_ratio_bound).clamp(min=0)
        ratio = (log_target - alpha - excess).exp()
        return (ratio * (1 + excess) + alpha - 1).sum(dim=0).mean()

    def slope(self, alpha: Tensor, log_target: Tensor) -> Tensor:
        ratio = (log_target - alpha).clamp(max=self.log_ratio_bound).exp()
        return (1 - ratio) / ratio.shape[1]


class Separate:
    """(alpha - r)^2, AmorLIP's l2-log objective (arXiv 2505.18983)."""

    def value(self, alpha: Tensor, log_target: Tensor) -> Tensor:
        return (alpha - log_target).square().sum(dim=0).mean()

    def slope(self, alpha: Tensor, log_target: Tensor) -> Tensor:
        return 2 * (alpha - log_target) / alpha.shape[1]


def build_fit(config: LogNormalizerConfig, ratio_bound: float) -> Fit:
    """As `config.fit` says."""
    return Unified(ratio_bound) if config.fit == "unified" else Separate()


def settled(before: Tensor, after: Tensor, tolerance: float) -> bool:
    """Has an inner step lowered the value by too small a share of it for another to be worth it?"""
    return bool(before - after < tolerance * before.abs())
