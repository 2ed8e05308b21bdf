"""A site's settings as jobs get them: the options of sbatch, and RUN/slurm/setup.sh, which every job sources."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import yaml

from pipeline.config.cluster import KINDS, Cluster, Kind, TrainResources, limit_seconds, load_cluster
from pipeline.config.schema import RunConfig
from pipeline.errors import UserError
from pipeline.files import atomic_open
from pipeline.launch.paths import RunPaths
from pipeline.launch.slurm.jobs import folder

SCRIPTS = Path(__file__).parents[3] / "slurm"
SIGNAL_SPREAD_SECONDS = 60  # SLURM sends its signal up to so much earlier than it is asked to
START_SECONDS = 60  # before which a signal may come too early to be heard


def find_cluster(given: Path | None, run_dir: Path) -> Cluster:
    """The settings in force: `given`, else $NEUCLIP_CLUSTER, else the run's own copy, else every default."""
    of_site = os.environ.get("NEUCLIP_CLUSTER")
    named = given or (Path(of_site) if of_site else None)
    return load_cluster(named) if named else kept_cluster(run_dir)


def kept_cluster(run_dir: Path) -> Cluster:
    """The settings that a run was last submitted with; every default where it was not."""
    kept = _kept(run_dir)
    return load_cluster(kept) if kept.exists() else Cluster()


def _kept(run_dir: Path) -> Path:
    return run_dir / "slurm" / "cluster.yaml"


def check(cluster: Cluster, config: RunConfig) -> None:
    """Raises UserError for settings under which a job could only fail."""
    for kind in KINDS:
        limit = cluster.resources(kind).time
        if limit is not None and limit_seconds(limit) <= cluster.signal_seconds + SIGNAL_SPREAD_SECONDS + START_SECONDS:
            raise UserError(
                f"{kind}.time={limit} leaves no time to work: jobs are asked to stop signal_seconds="
                f"{cluster.signal_seconds} before it, and SLURM does so up to {SIGNAL_SPREAD_SECONDS} s early. "
                "Raise the one, or lower the other."
            )
    ranks = ranks_of(cluster, config)
    if config.train.global_batch_size % ranks:
        raise UserError(
            f"train.global_batch_size={config.train.global_batch_size} cannot be split over {ranks} ranks "
            "(train.nodes times train.tasks_per_node of the cluster's settings)"
        )


def ranks_of(cluster: Cluster, config: RunConfig) -> int:
    """How many ranks one training has."""
    resources = _train(cluster)
    return resources.nodes * (resources.tasks_per_node or config.train.processes)


def options(cluster: Cluster, kind: Kind, config: RunConfig) -> list[str]:
    """What sbatch is asked for a job, or each element of an array, of this kind."""
    resources = cluster.resources(kind)
    train = resources if isinstance(resources, TrainResources) else TrainResources(tasks_per_node=1)
    asked = {
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "gres": resources.gres,
        "time": resources.time,
        "mem": resources.mem,
        "nodes": train.nodes,
        "ntasks-per-node": train.tasks_per_node or config.train.processes,
        "cpus-per-task": resources.cpus,
        "signal": f"B:USR1@{cluster.signal_seconds}",
    }
    return [*(f"--{name}={value}" for name, value in asked.items() if value is not None), *resources.sbatch_flags]


def write_site(paths: RunPaths, cluster: Cluster) -> None:
    """Leave in RUN/slurm what jobs need of the site, and the scripts as they are submitted."""
    target = folder(paths)
    logs(paths, cluster).mkdir(parents=True, exist_ok=True)
    with atomic_open(_kept(paths.root), "w") as stream:
        yaml.safe_dump(cluster.model_dump(mode="json", exclude_unset=True), stream, sort_keys=False)
    with atomic_open(target / "setup.sh", "w") as stream:
        stream.write(setup_script(cluster))
    for kind in KINDS:
        with atomic_open(target / f"{kind}.sbatch", "wb") as stream, open(SCRIPTS / f"{kind}.sbatch", "rb") as script:
            shutil.copyfileobj(script, stream)


def logs(paths: RunPaths, cluster: Cluster) -> Path:
    """Where SLURM's own output goes. What the commands say is in RUN/logs."""
    return Path(cluster.logs).expanduser().resolve() if cluster.logs else folder(paths) / "logs"


def setup_script(cluster: Cluster) -> str:
    """RUN/slurm/setup.sh: bash, sourced under `set -euo pipefail`."""
    lines = ["# Written by `neuclip submit` from the cluster's settings; jobs source it.", "set +u"]
    lines += [f"module load {shlex.quote(module)}" for module in cluster.modules]
    lines += [cluster.activate] if cluster.activate else []
    lines += ["set -u", *(f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items())]
    if cluster.scratch:  # $SLURM_JOB_ID and the like are the job's
        lines += [f'export TMPDIR="{cluster.scratch}"', 'mkdir -p "$TMPDIR"']
    if not cluster.activate:
        # shellcheck knows nothing of the script that reads it
        lines += ["# shellcheck disable=SC2034", f"neuclip=({shlex.quote(sys.executable)} -m pipeline)"]
    return "\n".join(lines) + "\n"


def _train(cluster: Cluster) -> TrainResources:
    resources = cluster.resources("train")
    assert isinstance(resources, TrainResources)
    return resources
