"""Exceptions of torch that mean: a process is gone. It has no types of its own for them, so they go by their words."""

from __future__ import annotations

import re

import torch.distributed as dist

from pipeline.errors import UserError

# A launcher that ends a job for the sake of one rank sends SIGTERM to the loader workers of the others, too.
_LOST = re.compile(
    "connection (closed|reset) by peer|connection was likely closed|broken pipe|socket closed|pair closure"
    "|killed by signal: terminated|timed out waiting|remote process exited"
    "|watchdog caught collective operation timeout",
    re.IGNORECASE,
)
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.+?)\.|exited)")


def connection_is_lost(error: RuntimeError) -> bool:
    """Whether it failed because another rank is not there any more."""
    return isinstance(error, dist.DistError) or _LOST.search(str(error)) is not None


def worker_died(error: RuntimeError) -> UserError | None:
    """What to read in place of the traceback, if a process of the loader has died."""
    found = _WORKER.search(str(error))
    if found is None:
        return None
    pids, signal = found.groups()
    if signal and signal.startswith("Bus error"):
        cause = "shared memory is full: raise the limit of /dev/shm, or lower loader.prefetch and loader.workers"
    else:
        cause = (
            "mostly the kernel or the scheduler that found memory used up (`dmesg` or `sacct -o MaxRSS` tell): ask for "
            "more memory per node, or lower loader.workers and loader.prefetch"
        )
    how = f"was killed ({signal})" if signal else "ended unexpectedly"
    return UserError(
        f"a loader worker (pid {pids}) {how}; the cause is {cause}. The same command goes on from the newest checkpoint"
    )
