"""What a job does when its element has ended: come back later, or release those who wait for it in vain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError
from pipeline.launch.attempts import read_attempts
from pipeline.launch.run import Run
from pipeline.launch.slurm import commands
from pipeline.launch.slurm.release import release
from pipeline.launch.slurm.site import kept_cluster
from pipeline.stopping import EXIT_STOPPED, STOP_FILE

EXIT_LOST = (76, 128 + 9)  # of a rank that hung or missed others; of one that was killed, as srun tells it
NOT_LAUNCHED = "srun: error: Task launch"  # a node that SLURM has not noticed to be down
LOST_AT_MOST = 3


def after(run: Run, stage: str, number: int, status: int, job: Mapping[str, Any]) -> None:
    """To be called last in a job. status: with which `neuclip work` is about to exit.

    Stopped: the job requeues itself, up to the site's max_requeues, unless somebody else is about to end it or the run
    was asked to stop. So it does when ranks were lost, for their node may be broken. Neither that nor done: the jobs
    that wait for this element are cancelled.
    """
    try:
        if status == 0:
            return
        if (status == EXIT_STOPPED or _lost_ranks(run, stage, number)) and _comes_back(run, job):
            return
        for waiting, other in release(run, (stage, number)):
            print(f"cancelled {waiting} {other}: it waited in vain", flush=True)
    except UserError as error:  # a chain that goes on by itself finds out in seconds for each element
        print(f"warning: {error}", flush=True)


def _lost_ranks(run: Run, stage: str, number: int) -> bool:
    """Whether training ended for ranks that hung or were gone, and not for the LOST_AT_MOST-th time in a row."""
    attempts = read_attempts(run.paths.attempts(stage, number))[-LOST_AT_MOST:]
    lost = [attempt.exit_status in EXIT_LOST or NOT_LAUNCHED in attempt.reason for attempt in attempts]
    return run.stage(stage).together and lost[-1:] == [True] and not (len(lost) == LOST_AT_MOST and all(lost))


def _comes_back(run: Run, job: Mapping[str, Any]) -> bool:
    if (run.paths.root / STOP_FILE).exists():
        return False
    name = name_of(job)
    if commands.state(name) != "RUNNING":
        return True  # SLURM ends it: a preemption or a requeue brings it back, and a cancellation is somebody's will
    limit = kept_cluster(run.paths.root).max_requeues
    if int(job.get("restarts", 0)) >= limit:
        print(f"not requeued again: max_requeues={limit} are used up. `neuclip retry` goes on from here", flush=True)
        return False
    commands.requeue(name)
    return True


def name_of(job: Mapping[str, Any]) -> str:
    """What scontrol calls this job or this element alone. An array's own id would mean all of its elements."""
    return f"{job['array_id']}_{job['array_index']}" if "array_id" in job else str(job["id"])
