"""When a checkpoint is due by the clock: rank 0's, looked at where it is logged, counted from the last save."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import callbacks
from pipeline.config.schema import CheckpointConfig


def saves(monkeypatch: pytest.MonkeyPatch, config: CheckpointConfig, seconds_per_step: float, steps: int) -> list[int]:
    """After which of `steps` steps, looking at the clock every 2."""
    now, saved = [100.0], []
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: now[0]))
    saving = callbacks.Saving(config, look_every_steps=2)
    progress = SimpleNamespace(step=0)
    trainer: Any = SimpleNamespace(
        progress=progress,
        total_steps=steps,
        config=SimpleNamespace(train=SimpleNamespace(global_batch_size=4)),
        corpus=range(100),
        checkpointer=SimpleNamespace(poll=lambda: None),
        save=lambda last: saved.append(progress.step),
    )
    for step in range(1, steps + 1):
        progress.step, now[0] = step, now[0] + seconds_per_step
        saving.after_step(trainer, None, None)  # type: ignore[arg-type]
    return saved


def test_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    every = CheckpointConfig(every_minutes=1)
    assert saves(monkeypatch, every, 10, 21) == [6, 12, 18, 21]
    assert saves(monkeypatch, every, 25, 9) == [4, 8, 9]  # due after 3, seen at 4
    assert saves(monkeypatch, CheckpointConfig(every_minutes=None), 1000, 9) == [9]


def test_a_save_by_steps_puts_off_the_one_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    both = CheckpointConfig(every="5 steps", every_minutes=1)
    assert saves(monkeypatch, both, 10, 12) == [5, 10, 12]
    assert saves(monkeypatch, both, 25, 12) == [4, 5, 8, 10, 12]
    assert saves(monkeypatch, CheckpointConfig(every="20 samples", every_minutes=None), 1, 12) == [5, 10, 12]
