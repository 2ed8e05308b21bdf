"""A signal ends the block once: not while a child is forked, and a second one does not break off the clean-up."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.errors import UserError
from pipeline.launch.stop_signal import ended_by_signal, held


def test_held_until_the_end_of_the_block() -> None:
    reached = []
    with pytest.raises(UserError, match="stopped by SIGTERM"), ended_by_signal():
        with held():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("inside")
        reached.append("after")
    assert reached == ["inside"]


def test_a_second_signal_does_not_interrupt_the_clean_up() -> None:
    cleaned = []
    with pytest.raises(UserError, match="stopped by SIGTERM"), ended_by_signal():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            cleaned.append(True)
    assert cleaned
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
