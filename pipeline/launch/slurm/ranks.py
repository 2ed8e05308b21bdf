"""Ranks from SLURM: in each task of srun, SLURM's variables become those that every launcher sets.

    srun ... python -m pipeline.launch.slurm.ranks python -m pipeline train ...

MASTER_ADDR and MASTER_PORT come from whoever calls srun (`srun.py`), since rank 0 runs on that node.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping


def standard_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, LOCAL_RANK and WORLD_SIZE of one task; as many threads as it was given CPUs."""
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS") or environment.get("SLURM_CPUS_PER_TASK", "1"),
    }


if __name__ == "__main__":
    os.environ.update(standard_variables(os.environ))
    os.execvp(sys.argv[1], sys.argv[1:])
