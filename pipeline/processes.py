"""Child processes that end with the process that started them, neither before it nor after.

A killed launcher must not leave children that go on writing into files which the next run takes over. Linux tells a
process that its parent is gone (prctl PR_SET_PDEATHSIG); elsewhere `die_with_parent` does nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from pipeline.stopping import SIGNALS

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def follow_parent(niceness: int) -> None:
    """Ignore signals, which go to whole process groups: this process ends with its parent. It yields the CPU to it.

    niceness: what is added to this process's.
    """
    for number in (*SIGNALS, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(niceness)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; at once, if process id `parent` is gone already.

    For a `preexec_fn`, or first thing in the child: the setting survives `exec`, and is not inherited.
    """
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
