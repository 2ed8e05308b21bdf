"""A signal ends the block once: not while a child is forked, and a second one does not break off the clean-up."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.errors import UserError
from pipeline.launch.stop_signal import ended_by_signal, held, raise_if_stopped
from pipeline.stopping import SIGNALS


def stopped_while_held(reached: list[str]) -> None:
    with ended_by_signal():
        with held():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("inside")
        reached.append("after")


class Unlucky:
    """What is raised in a `__del__` is dropped."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def stopped_where_exceptions_are_dropped(reached: list[str]) -> None:
    with ended_by_signal():
        Unlucky()
        reached.append("after")
        raise_if_stopped()
        reached.append("never")


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


@pytest.mark.parametrize("number", SIGNALS)
def test_it_ends_by_every_signal_that_stops_a_run(number: signal.Signals) -> None:
    with pytest.raises(UserError, match=f"stopped by {number.name}; the same command goes on"), ended_by_signal():
        os.kill(os.getpid(), number)


def test_a_second_signal_does_not_interrupt_the_clean_up() -> None:
    cleaned: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(UserError, match="stopped by SIGTERM"):
        stopped_twice(cleaned)
    assert cleaned == ["up"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_python_dropped_is_not_lost() -> None:
    reached: list[str] = []
    with pytest.raises(UserError, match="stopped by SIGTERM"):
        stopped_where_exceptions_are_dropped(reached)
    assert reached == ["after"]
