"""SIGTERM, SIGUSR1 and Ctrl-C unwind the stack, so that children are ended and the display is closed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import UserError
from pipeline.stopping import SIGNALS

_received: list[str] = []  # names of signals, while `ended_by_signal` watches
_held = 0


class Stopped(BaseException):
    """Not an Exception: whoever passes over those, as tracking does, must not pass over a stop."""


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """The first signal inside the block ends it, as a UserError."""
    before = {number: signal.signal(number, _stop) for number in SIGNALS}
    try:
        yield
    except Stopped as stopped:
        raise UserError(f"stopped by {stopped}; the same command goes on from here") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


@contextmanager
def held() -> Iterator[None]:
    """A signal inside the block takes effect at its end: Python drops an exception that is raised while it forks."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    if _received and not _held:
        raise Stopped(_received[0])


def raise_if_stopped() -> None:
    """Raise what a signal raised before, for loops that wait.

    Python drops an exception that is raised in a `__del__`, a weak reference's callback or a C library's: the stop
    would be lost, and no further signal is listened to.
    """
    if _received:
        raise Stopped(_received[0])


def _stop(number: int, frame: object) -> None:
    _received.append(signal.Signals(number).name)
    # A second one must not break off what the first has begun: children that are saving.
    if len(_received) == 1 and not _held:
        raise Stopped(_received[0])
