"""How a job runs the command of an element: in the site's container, and with a rank per task where it has ranks."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from pipeline.config.cluster import Cluster, Container
from pipeline.errors import UserError
from pipeline.launch.ports import free_port
from pipeline.launch.slurm import commands


def launched(cluster: Cluster, command: list[str], together: bool, environment: Mapping[str, str]) -> list[str]:
    """The argv. together: start ranks; the first runs on this node, which is the job's first.

    environment: the job's. Raises UserError outside of jobs where ranks are wanted.
    """
    container = cluster.container or Container(python=sys.executable)
    python, flags = container.python, container.srun_flags
    inner = [python if part == sys.executable else part for part in command]
    # srun has not taken this over from sbatch since SLURM 22.05.
    cpus = f"--cpus-per-task={environment.get('SLURM_CPUS_PER_TASK', '1')}"
    if not together:
        alone = ["srun", "--nodes=1", "--ntasks=1", cpus, *flags]
        return [*(alone if flags else []), *container.command, *inner]
    if "SLURM_JOB_ID" not in environment:
        raise UserError("srun starts ranks within a job: submit slurm/train.sbatch, or leave out --launcher srun")
    address, port = commands.node_address(environment["SLURMD_NODENAME"]), free_port()
    # Ranks agree on how to end: one that ends first must not have the others killed while they save or say why.
    srun = ["srun", "--kill-on-bad-exit=0", "--wait=300", cpus, *cluster.srun_flags, *flags]
    ranks = [python, "-m", "pipeline.launch.slurm.ranks"]
    return ["env", f"MASTER_ADDR={address}", f"MASTER_PORT={port}", *srun, *container.command, *ranks, *inner]
