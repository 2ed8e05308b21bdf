"""A signal ends the block once: not while a child is forked, and a second one does not break off the clean-up."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.errors import UserError
from pipeline.launch.stop_signal import ended_by_signal, held


def stopped_while_held(reached: list[str]) -> None:
    with ended_by_signal():
        with held():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("inside")
        reached.append("after")


def stopped_twice(cleaned: list[str]) -> None:
    with ended_by_signal():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            cleaned.append("up")


def test_a_signal_is_held_until_the_end_of_the_block() -> None:
    reached: list[str] = []
    with pytest.raises(UserError, match="stopped by SIGTERM"):
        stopped_while_held(reached)
    assert reached == ["inside"]


def test_a_second_signal_does_not_interrupt_the_clean_up() -> None:
    cleaned: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(UserError, match="stopped by SIGTERM"):
        stopped_twice(cleaned)
    assert cleaned == ["up"]
    assert signal.getsignal(signal.SIGINT) is before
