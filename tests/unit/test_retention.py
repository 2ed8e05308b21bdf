"""Which checkpoints stay, by two definitions; when one is due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.duration import multiples
from pipeline.config.schema import CheckpointConfig
from pipeline.engine.retention import Retention
from pipeline.engine.tags import step_of, tag_of

STEPS = st.lists(st.integers(1, 200), unique=True, max_size=40).map(sorted)


@given(steps=STEPS, keep=st.integers(1, 5), period=st.integers(1, 60))
def test_the_newest_and_the_first_of_each_period_stay(steps: list[int], keep: int, period: int) -> None:
    """Saved one by one, with the superseded removed each time, what stays is what all of them at once would leave."""
    retention = Retention(keep, f"{period} steps", 12, 203)
    there: list[str] = []
    for step in steps:
        there.append(tag_of(step))
        gone = retention.superseded(there)
        there = [tag for tag in there if tag not in gone]
    firsts = {
        min(step for step in steps if step >= m) for m in range(period, 201, period) if m <= max(steps, default=0)
    }
    assert {step_of(tag) for tag in there} == firsts | set(steps[-keep:])


@given(steps=STEPS, keep=st.integers(1, 5))
def test_without_a_period_the_newest_stay(steps: list[int], keep: int) -> None:
    tags = [tag_of(step) for step in steps]
    assert Retention(keep, None, 12, 203).superseded(tags) == tags[:-keep]


@given(period=st.integers(1, 500), batch=st.integers(1, 64))
def test_a_period_in_samples_does_not_drift(period: int, batch: int) -> None:
    for step in range(50):
        assert multiples(f"{period} samples", step, batch, 1000) == step * batch // period


def test_units() -> None:
    assert multiples("3 steps", 8, 12, 100) == 2
    assert multiples("0.5 epochs", 21, 12, 100) == 5
    assert multiples("0.1 epochs", 3, 10, 100) == 3


@pytest.mark.parametrize("setting", ["every", "keep_every"])
def test_a_period_is_not_zero(setting: str) -> None:
    with pytest.raises(ValueError, match="must be more than 0"):
        CheckpointConfig(**{setting: "0 steps"})
    assert getattr(CheckpointConfig(**{setting: 5}), setting) == "5 steps"
