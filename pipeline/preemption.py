"""A request to stop: a signal, or a `STOP` file that a colleague without rights on the job can leave.

The first signal is only noted; the trainer asks between steps, on all ranks at once, saves after one step more, and
exits with EXIT_STOPPED. Schedulers send more signals for the same end (SLURM SIGUSR1 ahead of a time limit, and at it
SIGTERM, twice): these change nothing. Ctrl-C after the first is a person who will not wait, and ends the process at
once. So does a stop that takes too long. Both work while the loop is stuck, for a thread of its own reads what the
kernel delivers.
"""

from __future__ import annotations

import faulthandler
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from pipeline import collectives
from pipeline.distributed import World
from pipeline.health.last_resort import set_deadline
from pipeline.stopping import SIGNALS, STOP_FILE
from pipeline.transfer import Transfer


class StopRequest:
    """Listens for SIGNALS and for `run_dir/STOP`; `agreed` tells all ranks the same.

    within_seconds: after the first signal; a process that still runs then says where it hangs and is ended, with exit
    status 128 + signal.
    """

    def __init__(self, run_dir: Path, world: World, within_seconds: float) -> None:
        self._file = run_dir / STOP_FILE
        self._world = world
        self._signal: int | None = None
        self._answer: Transfer | None = None  # to what the last call of `agreed` asked
        listener = threading.Thread(target=_listen, args=(_wakeups(), within_seconds), name="signals", daemon=True)
        listener.start()
        for number in SIGNALS:
            signal.signal(number, self._note)

    def agreed(self) -> bool:
        """Whether any rank had been asked to stop when this was last called; collective.

        The answer is read one call later, so that no step waits for the device.
        """
        asked = self._signal is not None or (self._world.rank == 0 and self._file.exists())
        before, flag = self._answer, torch.full((1,), float(asked), device=self._world.device)
        self._answer = Transfer({"asked": collectives.all_reduce(flag, "max")})
        return before is not None and before.values()["asked"] > 0

    @property
    def asked(self) -> bool:
        """Whether this rank has been asked to stop."""
        return self._signal is not None or self._file.exists()

    @property
    def reason(self) -> str:
        """What was seen on this rank, for the log."""
        if self._signal is not None:
            return signal.Signals(self._signal).name
        return f"{self._file} exists" if self._file.exists() else "another rank was asked to stop"

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or number


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are forked inside the block never receive SIGNALS.

    A terminal or a scheduler sends them to whole process groups, and a rank that stops still needs its data workers.
    The rank itself goes on to receive them, in its other threads if need be.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wakeups() -> int:
    """A descriptor on which the numbers of caught signals arrive, one byte each, whatever Python is doing."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


def _listen(wakeups: int, within_seconds: float) -> None:
    first = _next_signal(wakeups, SIGNALS, math.inf)
    assert first is not None
    # Should the loop be stuck in code that lets no other thread of Python run, this ends it, with exit status 1.
    set_deadline("stop", 1.1 * within_seconds)
    impatient = _next_signal(wakeups, [signal.SIGINT], within_seconds)
    if impatient is None:
        name = signal.Signals(first).name
        print(
            f"error: the stop for {name} took more than {within_seconds:g} s; forced out while here:", file=sys.stderr
        )
        faulthandler.dump_traceback(file=sys.stderr)
        sys.stderr.flush()
    os._exit(128 + (first if impatient is None else impatient))


def _next_signal(wakeups: int, numbers: Collection[int], within_seconds: float) -> int | None:
    """The next of these, None when none comes in time."""
    deadline = time.monotonic() + within_seconds
    while select.select([wakeups], [], [], _left(deadline))[0]:
        number = os.read(wakeups, 1)[0]
        if number in numbers:  # torch's DataLoader catches SIGCHLD
            return number
    return None


def _left(deadline: float) -> float | None:
    """Seconds, as `select` wants them."""
    return None if deadline == math.inf else max(0.0, deadline - time.monotonic())
