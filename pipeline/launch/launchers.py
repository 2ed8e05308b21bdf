"""How the ranks of a command are started: what comes before its argv, and into its environment, by launcher."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from pipeline.launch.paths import RunPaths

Launch = tuple[list[str], dict[str, str]]


def _local(paths: RunPaths) -> Launch:
    """As many processes of this machine as the recipe says."""
    ranks = paths.config.train.processes
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    return [sys.executable, "-m", "pipeline.launch.ranks", str(ranks)], {"OMP_NUM_THREADS": threads}


def _srun(paths: RunPaths) -> Launch:
    from pipeline.launch.slurm.ranks import prefix

    return prefix(paths), {}


LAUNCHERS: dict[str, Callable[[RunPaths], Launch]] = {"local": _local, "srun": _srun}
