"""On curves drawn here: a loss that only scatters is flat; one that falls slowly, rises, or has fallen is not."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from pipeline.config.schema import HealthConfig
from pipeline.health.loss_flat import LossFlat

WARMUP, STEPS, EVERY = 200, 4000, 10


def complaints(losses: Iterable[float], first_step: int = 1) -> list[int]:
    """The steps at which the check complains of a new episode."""
    check = LossFlat(HealthConfig(), WARMUP, EVERY)
    return [
        step
        for step, loss in enumerate(losses, first_step)
        if check.update({"train/loss": float(loss), "step": float(step)})
    ]


def noise(seed: int, sigma: float, correlation: float = 0.0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(0, sigma, STEPS)
    for i in range(1, STEPS):
        drawn[i] = correlation * drawn[i - 1] + (1 - correlation**2) ** 0.5 * drawn[i]
    return drawn


t = np.arange(1, STEPS + 1)
LEARNING: dict[str, np.ndarray] = {
    "a power law, slow": 1 + 5 * t**-0.05,
    "a power law, usual": 1 + 5 * t**-0.3,
    "a thousandth per ten steps": 6 - 1e-4 * t,
    "falls in the warm-up, then slowly": np.where(t < WARMUP, 9 - t / 100, 7 - 1e-4 * t),
    "has learned, rests": np.maximum(6 - t / 400, 3.0),
    "rises, as tau falls": -8 + 2e-4 * t,
    "an objective far below zero": -1000 - 0.01 * t,
}


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize(("sigma", "correlation"), [(0.0, 0.0), (0.01, 0.0), (0.1, 0.0), (0.05, 0.5), (0.01, 0.9)])
def test_a_run_that_learns_is_left_alone(name: str, sigma: float, correlation: float) -> None:
    for seed in range(3):
        assert complaints(LEARNING[name] + noise(seed, sigma, correlation)) == []


@pytest.mark.parametrize("sigma", [0.0, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize("before", [0.0, 3.0])
def test_a_loss_that_only_scatters_is_said_once_and_soon(sigma: float, before: float) -> None:
    """before: what it loses in the warm-up, as towers do that learn to say nothing of mismatched pairs."""
    fall = np.where(t <= WARMUP, before * (1 - t / WARMUP), 0.0)
    for seed in range(10):
        said = complaints(5.5 + fall + noise(seed, sigma))
        assert said[0] == WARMUP + HealthConfig().loss_flat_steps
        assert len(said) == 1


def test_noise_alone_is_taken_for_learning_less_than_once_in_a_hundred() -> None:
    missed = sum(complaints(noise(seed, 1.0)[: WARMUP + 1000]) == [] for seed in range(300))
    assert missed <= 3


def test_a_run_whose_beginning_is_not_known_is_not_judged() -> None:
    assert complaints(noise(0, 1.0), first_step=WARMUP + 500) == []
