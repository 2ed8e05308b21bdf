"""The ranks of one command as processes of this machine: `python -m pipeline.launch.ranks COUNT COMMAND...`.

They get the variables that torchrun would give. It would also kill ranks that take more than 30 s to save when they
are asked to stop, and make 1 of every exit status.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from types import FrameType

from pipeline.launch.children import end
from pipeline.launch.ports import free_port
from pipeline.processes import die_with_parent
from pipeline.stopping import EXIT_STOPPED, SIGNALS

POLL_SECONDS = 0.05
GRACE_SECONDS = 60.0  # for the others to notice that a rank is gone, and to say so; those that stop bound it themselves


def run_ranks(count: int, command: Sequence[str], grace_seconds: float = GRACE_SECONDS) -> int:
    """Run the command as ranks 0 to count - 1, pass SIGNALS on to all of them, and wait for their end.

    They meet on the loopback. Returns 0, or the exit status of the first that ended otherwise, 128 + signal where one
    killed it; the others are ended some time after that.
    """
    ranks: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if len(ranks) < count:
            early.append(number)
        for process in ranks:
            process.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    for rank in range(count):
        environment = {**os.environ, **meet, **size, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(subprocess.Popen(command, env=environment, preexec_fn=partial(die_with_parent, os.getpid())))
        for received in early:
            ranks[-1].send_signal(received)
    return _first_failure(ranks, grace_seconds)


def _first_failure(ranks: list[subprocess.Popen[bytes]], grace_seconds: float) -> int:
    failure, deadline = 0, float("inf")
    while True:
        statuses = [process.poll() for process in ranks]
        failure = failure or next((status for status in statuses if status), 0)
        if None not in statuses:
            return failure if failure >= 0 else 128 - failure
        if failure and failure != EXIT_STOPPED:
            deadline = min(deadline, time.monotonic() + grace_seconds)
        if time.monotonic() > deadline:
            end([process for process in ranks if process.returncode is None])
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(run_ranks(int(sys.argv[1]), sys.argv[2:]))
