"""Run a function on several gloo ranks of this machine, as an ordinary pytest call.

    results = run_ranks(4, check, 3, timeout_seconds=60)     # check(3) on each of 4 ranks

Processes come from a fork server that has imported torch and DeepSpeed once, so a launch costs a part
of a second; still, group what belongs together.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pytest", "pipeline.trainer"])


def run_ranks(
    world_size: int,
    function: Callable[..., Any],
    *args: Any,
    timeout_seconds: float = 300,
    last_words_seconds: float = 1,
) -> list[Any]:
    """What `function(*args)` returned on each rank, in rank order; the process group is up while it runs.

    function, args and results are pickled: the function must be at the top level of its module.
    last_words_seconds: how long the others may go on when one has failed.
    Raises RuntimeError with the traceback of the ranks that failed, or with the ranks that were still running
    when the time was over; no process is left behind.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        processes = [
            _CONTEXT.Process(target=_entry, args=(rank, environment, folder, function, args))
            for rank in range(world_size)
        ]
        try:
            for process in processes:
                process.start()
            late = _wait(processes, timeout_seconds, last_words_seconds)
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
        tracebacks = [path.read_text() for path in sorted(folder.glob("*.error"))]
        if tracebacks or late:
            waited = f"ranks {late} did not end within {timeout_seconds} s" if late else ""
            raise RuntimeError("\n".join([*tracebacks, waited]))
        died = {rank: process.exitcode for rank, process in enumerate(processes) if process.exitcode}
        if died:
            raise RuntimeError(f"ranks died without an exception (rank: exit code): {died}")
        return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(world_size)]


def free_port() -> str:
    """A port on localhost that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _wait(processes: Sequence[BaseProcess], timeout_seconds: float, last_words_seconds: float) -> list[int]:
    """Wait until all have ended or one has failed; returns the ranks that still ran at the deadline."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if all(process.exitcode is not None for process in processes):
            return []
        if any(process.exitcode for process in processes):
            failed_at = time.monotonic()
            for process in processes:
                process.join(max(0.0, failed_at + last_words_seconds - time.monotonic()))
            return []
        time.sleep(0.02)
    return [rank for rank, process in enumerate(processes) if process.exitcode is None]


def _entry(
    rank: int, environment: dict[str, str], folder: Path, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank), CUDA_VISIBLE_DEVICES="")
    import torch

    from pipeline.collectives import barrier
    from pipeline.distributed import init, shutdown

    torch.set_num_threads(1)
    try:
        init(timeout_seconds=150)  # a rank that shares its core with others may be that late
        result = function(*args)
        (folder / f"{rank}.result").write_bytes(pickle.dumps(result))
        barrier()
        shutdown()
    except BaseException:
        (folder / f"{rank}.error").write_text(f"rank {rank}: {traceback.format_exc()}")
        raise SystemExit(1) from None
