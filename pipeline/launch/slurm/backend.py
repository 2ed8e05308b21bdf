"""The SLURM backend of a run: submit what it lacks, show what that would be, cancel."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.cluster import Cluster
from pipeline.errors import UserError
from pipeline.launch.paths import RunPaths
from pipeline.launch.plan import freeze
from pipeline.launch.run import Run
from pipeline.launch.slurm import commands, jobs
from pipeline.launch.slurm.chain import Submission, missing, overtaken, plan_submissions, submit
from pipeline.launch.slurm.commands import Queued
from pipeline.launch.slurm.jobs import Element
from pipeline.launch.slurm.site import check, find_cluster, write_site
from pipeline.launch.state import JobState
from pipeline.locks import exclusive
from pipeline.stopping import STOP_FILE

REASONS = {  # the commonest words of squeue, in ours
    "Dependency": "",  # on the stages before
    "None": "",
    "BeginTime": "requeued: SLURM starts it two minutes later",
    "JobArrayTaskLimit": "as many elements run as the throttle allows",
    "Priority": "other jobs come first",
    "Resources": "waits for free nodes",
}
PATIENCE_SECONDS = 60  # for another submission of the same run
ENDING_SECONDS = 60  # for jobs that are just ending to be gone, or back in the queue


@dataclass(frozen=True)
class Submitted:
    """submissions and their job ids; in_queue: elements that had been submitted before and are not over."""

    submissions: list[Submission]
    ids: list[str]
    in_queue: int


def submit_run(settled: RunPaths, cluster: Cluster, first: str | None = None, only: str | None = None) -> Submitted:
    """Submit what a settled run lacks, from stage `first` on or of stage `only`, unless it is in the queue."""
    commands.require()
    stop = settled.root / STOP_FILE
    if stop.exists():
        raise UserError(f"{stop} exists: somebody wants this run to stop. Remove it to go on.")
    with exclusive(settled.root / ".lock", str(settled.root), PATIENCE_SECONDS):
        run = Run.planned(freeze(settled))
        stages = run.select(first, only)
        write_site(run.paths, cluster)
        todo, queued = missing(run), _settled_queue(run.paths)
        late = {element: queued.pop(element) for element in overtaken(run, stages, todo, queued)}
        # Planned before anything is cancelled, for planning may refuse.
        waiting = {element: one.job for element, one in queued.items()}
        submissions = plan_submissions(run, stages, cluster, todo, waiting, commands.max_array_size())
        jobs.cancel(run.paths, late, "submitted anew, to wait for what is made again")
        return Submitted(submissions, submit(run, cluster, submissions), len(queued))


def checked_cluster(paths: RunPaths, cluster_file: Path | None) -> Cluster:
    """The settings to submit with. Raises UserError for those under which a member's jobs could only fail."""
    cluster = find_cluster(cluster_file, paths.root)
    for number in range(max(1, len(paths.members))):
        check(cluster, paths.member(number).config)
    return cluster


def cancel_run(run: Run) -> dict[Element, Queued]:
    """Take exactly this run's jobs out of the queue; those that run are ended. Returns what was there."""
    queued = jobs.in_queue(run.paths)
    jobs.cancel(run.paths, queued, "neuclip cancel")
    return queued


def was_submitted(paths: RunPaths) -> bool:
    """Whether the run is SLURM's, so that what failed goes there again."""
    return jobs.ledger(paths).exists()


def job_states(paths: RunPaths) -> dict[Element, JobState]:
    """Of the elements that SLURM has, for `run_state`. Raises UserError when SLURM does not answer."""
    return {
        element: JobState(
            state="queued" if queued.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD") else "running",
            job=queued.name,
            nodes=queued.nodes,
            reason=REASONS.get(queued.reason, queued.reason) if queued.state == "PENDING" else "",
        )
        for element, queued in jobs.in_queue(paths).items()
    }


def _settled_queue(paths: RunPaths) -> dict[Element, Queued]:
    """What is in the queue, once nothing of it is just ending: it may be gone then, or pending again."""
    deadline = time.monotonic() + ENDING_SECONDS
    while True:
        queued = jobs.in_queue(paths)
        if all(one.state != "COMPLETING" for one in queued.values()) or time.monotonic() > deadline:
            return queued
        time.sleep(1)
