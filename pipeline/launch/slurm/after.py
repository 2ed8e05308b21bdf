"""What a job does when its element has ended: come back later, or release those who wait for it in vain."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.launch.attempts import read_attempts
from pipeline.launch.run import Run
from pipeline.launch.slurm import commands
from pipeline.launch.slurm.jobs import name_of
from pipeline.launch.slurm.release import release
from pipeline.launch.slurm.site import kept_cluster
from pipeline.stopping import EXIT_LOST, EXIT_STOPPED, STOP_FILE

T = TypeVar("T")
LOST = (EXIT_LOST, 128 + 9)  # of a rank that hung or missed others; of one that was killed, as srun tells it
NOT_LAUNCHED = "srun: error: Task launch"  # a node that SLURM has not noticed to be down
LOST_AT_MOST = 3
PATIENCE_SECONDS, PAUSE_SECONDS = 240, 10
TIME_LIMIT = "TimeLimit"  # SLURM's reason for which a job is being ended


def ending(run: Run, job: Mapping[str, Any]) -> None:
    """To be called when SLURM asks the job to end, before it kills it: at its time limit the job requeues itself.

    What it works on has not saved in the time that it was given then, and goes on from where it last did.
    """
    try:
        told = commands.told(name_of(job))
        if told is not None and told.reason == TIME_LIMIT:
            _comes_back(run, job)
    except UserError as error:
        print(f"warning: {error}", flush=True)


def after(run: Run, stage: str, number: int, status: int, job: Mapping[str, Any]) -> None:
    """To be called last in a job. status: with which `neuclip work` is about to exit.

    Stopped: the job requeues itself, up to the site's max_requeues, unless SLURM brings it back, or ends it for
    somebody who wanted that, or the run was asked to stop. So it does when ranks were lost, for their node may be
    broken. Where it neither comes back nor is done, the jobs that wait for this element are cancelled.
    """
    try:
        if status == 0:
            return
        may_go_on = status == EXIT_STOPPED or _lost_ranks(run, stage, number)
        if may_go_on and _patiently(lambda: _comes_back(run, job)):
            return
        for waiting, other in release(run, (stage, number)):
            print(f"cancelled {waiting} {other}: it waited in vain", flush=True)
    except UserError as error:  # a chain that goes on by itself finds out in seconds for each element
        print(f"warning: {error}", flush=True)


def _lost_ranks(run: Run, stage: str, number: int) -> bool:
    """Whether training ended for ranks that hung or were gone, and not for the LOST_AT_MOST-th time in a row."""
    attempts = read_attempts(run.paths.attempts(stage, number))[-LOST_AT_MOST:]
    lost = [attempt.exit_status in LOST or NOT_LAUNCHED in attempt.reason for attempt in attempts]
    return run.stage(stage).together and lost[-1:] == [True] and not (len(lost) == LOST_AT_MOST and all(lost))


def _patiently(ask: Callable[[], T]) -> T:
    """What SLURM says in the end: while its controller restarts it says nothing, and the job could not come back."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except UserError as error:
            if time.monotonic() > deadline:
                raise
            print(f"{error}; asking again", flush=True)
            time.sleep(PAUSE_SECONDS)


def _comes_back(run: Run, job: Mapping[str, Any]) -> bool:
    told = commands.told(name_of(job))
    if told is None or (run.paths.root / STOP_FILE).exists():
        return False
    restarts = int(job.get("restarts", 0))
    if told.restarts > restarts:
        return True  # after a preemption, a requeue, the loss of a node
    if told.state != "RUNNING" and told.reason != TIME_LIMIT:
        return False  # cancelled
    limit = kept_cluster(run.paths.root).max_requeues
    if restarts >= limit:
        print(f"not requeued again: max_requeues={limit} are used up. `neuclip retry` goes on from here", flush=True)
        return False
    commands.requeue(name_of(job))
    return True
