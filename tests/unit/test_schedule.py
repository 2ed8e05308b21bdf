"""Durations in a user's words, and the learning rate over a run."""

from __future__ import annotations

import itertools
import math

import pytest

from pipeline.config.duration import steps_of
from pipeline.config.loader import parse
from pipeline.config.schema import OptimizerConfig, TemperatureConfig
from pipeline.engine.schedule import Schedule, build_schedule, temperature_rate
from pipeline.errors import UserError


def schedule(**settings: object) -> Schedule:
    config = parse(OptimizerConfig, {"lr": 1.0, "lr_min": 0.1, "warmup": "4 steps", **settings}, where="test")
    return build_schedule(config, total_steps=24, global_batch_size=8, samples_per_epoch=80)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [("7 steps", 7), ("56 samples", 7), ("63 samples", 7), ("2 epochs", 20), ("0.3 epochs", 3), ("1e2 samples", 12)],
)
def test_a_duration_in_steps(duration: str, steps: int) -> None:
    assert steps_of(duration, global_batch_size=8, samples_per_epoch=80) == steps


def test_durations_have_one_spelling_and_keep_every_digit() -> None:
    written = {
        200: "200 steps",
        "1step": "1 steps",
        " 123_456_789  samples ": "123456789 samples",
        "0.5 epoch": "0.5 epochs",
    }
    for given, kept in written.items():
        assert parse(OptimizerConfig, {"warmup": given}, where="test").warmup == kept


@pytest.mark.parametrize("wrong", ["soon", "1e400 samples", "5 minutes", "-3 steps", "1.5 steps", True, None, 2.5, ""])
def test_what_is_no_duration_is_refused(wrong: object) -> None:
    with pytest.raises(UserError, match="warmup"):
        parse(OptimizerConfig, {"warmup": wrong}, where="test")


def test_warm_up_is_linear_and_reaches_the_rate() -> None:
    assert [schedule().rate(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_against_its_formula() -> None:
    for step in range(4, 24):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 4) / 20)) / 2
        assert schedule().rate(step) == pytest.approx(expected)


def test_linear_falls_by_the_same_amount_each_step() -> None:
    rates = [schedule(schedule="linear").rate(step) for step in range(4, 24)]
    assert [a - b for a, b in itertools.pairwise(rates)] == pytest.approx([0.9 / 20] * 19)


def test_constant_holds_until_its_cooldown() -> None:
    constant = schedule(schedule="constant", cooldown="1 epochs")
    assert [constant.rate(step) for step in range(4, 15)] == [1.0] * 11
    assert [constant.rate(step) for step in (19, 23)] == pytest.approx([0.55, 0.19])


def test_a_cooldown_belongs_to_constant() -> None:
    with pytest.raises(UserError, match="cooldown is for schedule=constant"):
        schedule(cooldown=3)


def test_a_warm_up_that_outlasts_the_run_is_said(caplog: pytest.LogCaptureFixture) -> None:
    schedule(warmup="24 steps")
    assert not caplog.text
    schedule(warmup="25 steps")
    assert "never trains at optimizer.lr" in caplog.text


def test_taus_rate_drops_to_a_third_once_tau_is_low() -> None:
    """FastCLIP's step, at its threshold by default."""
    default = TemperatureConfig(lr=6e-4)
    assert [temperature_rate(tau, default) for tau in (0.07, 0.0301)] == [6e-4, 6e-4]
    assert [temperature_rate(tau, default) for tau in (0.03, 0.01)] == pytest.approx([2e-4, 2e-4])
    assert temperature_rate(0.05, TemperatureConfig(lr=1.0, drop_below=0.05, drop_factor=0.1)) == pytest.approx(0.1)
