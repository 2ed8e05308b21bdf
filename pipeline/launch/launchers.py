"""How the command of an element is started: its argv in full, and what goes into its environment, by launcher."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable

from pipeline.launch.paths import RunPaths

Launch = tuple[list[str], dict[str, str]]


def _local(paths: RunPaths, command: list[str], together: bool) -> Launch:
    """torchrun, with as many processes of this machine as the recipe says.

    Its own meeting point is a file, and the ranks meet on the loopback: no port is open to the network.
    """
    if not together:
        return command, {}
    for meeting_point in paths.home.glob(".rendezvous-*"):  # of launches that are over
        meeting_point.unlink()
    meet = ["--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--local-addr", "127.0.0.1"]
    at = ["--rdzv-endpoint", str(paths.home / f".rendezvous-{uuid.uuid4().hex}"), "--rdzv-id", "train"]
    ranks = ["--nproc-per-node", str(paths.config.train.processes)]
    prefix = [sys.executable, "-m", "torch.distributed.run", *ranks, *meet, *at, "--no-python"]
    environment = {
        # It would keep a store for its ranks that listens on every interface; ours keep their own.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    }
    if "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // paths.config.train.processes))
    return [*prefix, *command], environment


def _srun(paths: RunPaths, command: list[str], together: bool) -> Launch:
    """Within a job of SLURM: a rank per task, and everything in the site's container."""
    from pipeline.launch.slurm.site import kept_cluster
    from pipeline.launch.slurm.srun import launched

    return launched(kept_cluster(paths.root), command, together, os.environ), {}


LAUNCHERS: dict[str, Callable[[RunPaths, list[str], bool], Launch]] = {"local": _local, "srun": _srun}
