"""Child processes that never outlive the process that started them.

A killed launcher must not leave children that go on writing into files which the next run takes over. Linux tells a
process that its parent is gone (prctl PR_SET_PDEATHSIG); elsewhere these functions do nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; at once, if process id `parent` is gone already.

    For a `preexec_fn`, or first thing in the child: the setting survives `exec`, and is not inherited.
    """
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
