"""How the command of an element is started: its argv in full, and what goes into its environment, by launcher."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from pipeline.launch.paths import RunPaths

Launch = tuple[list[str], dict[str, str]]


def _local(paths: RunPaths, command: list[str], together: bool) -> Launch:
    """As many processes of this machine as the recipe says."""
    if not together:
        return command, {}
    ranks = paths.config.train.processes
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    return [sys.executable, "-m", "pipeline.launch.ranks", str(ranks), *command], {"OMP_NUM_THREADS": threads}


def _srun(paths: RunPaths, command: list[str], together: bool) -> Launch:
    """Within a job of SLURM: a rank per task, and everything in the site's container."""
    from pipeline.launch.slurm.site import kept_cluster
    from pipeline.launch.slurm.srun import launched

    return launched(kept_cluster(paths.root), command, together, os.environ), {}


LAUNCHERS: dict[str, Callable[[RunPaths, list[str], bool], Launch]] = {"local": _local, "srun": _srun}
