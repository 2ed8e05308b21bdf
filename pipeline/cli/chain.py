"""Commands on a run that is planned: `neuclip work`, `status`, `logs`, `retry`."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import jobs_option, selection_options
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.launch.run import Run
    from pipeline.launch.state import RunState

run_dir_argument = click.argument("run_dir", metavar="RUN", type=click.Path(file_okay=False, path_type=Path))


@click.command()
@run_dir_argument
@click.argument("stage")
@click.argument("element", type=click.IntRange(0), default=0)
@click.option(
    "--launcher",
    type=click.Choice(["local", "srun"]),
    default="local",
    show_default=True,
    help="Where the ranks of training start: on this machine, or by srun in a SLURM job.",
)
def work(run_dir: Path, stage: str, element: int, launcher: str) -> None:
    """Do one element of one stage of RUN, as a backend does.

    STAGE and ELEMENT as `neuclip status RUN` shows them. What the command says goes to
    RUN/logs/STAGE.ELEMENT.log; how each attempt ended, to RUN/stages/STAGE.ELEMENT.attempts.jsonl.

    \b
    Ends with
      0   done, now or before
      75  stopped (SIGTERM, SIGUSR1, a file RUN/STOP): the same command goes on
      3   blocked: what it needs is not done
      2   failed
    \b
    Example:
      neuclip work demo download 2
    """
    from pipeline.launch.job import describe_job
    from pipeline.launch.run import Run
    from pipeline.launch.work import work

    run, job = Run.open(run_dir), describe_job(os.environ)
    if launcher != "srun" or job is None:
        sys.exit(work(run, run.stage(stage), element, launcher, job))
    from pipeline.launch.slurm.after import after, ending

    status = work(run, run.stage(stage), element, launcher, job, partial(ending, run, job))
    after(run, stage, element, status, job)
    sys.exit(status)


@click.command()
@run_dir_argument
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(run_dir: Path, as_json: bool) -> None:
    """Where RUN stands: stages, elements, what failed and why, and what to type next.

    \b
    done      its marker is there
    running   a process works on it
    queued    a job of it waits at the scheduler
    failed    its last attempt failed, or vanished without a word; `neuclip retry RUN` tries it again
    stopped   it was asked to stop, and goes on from there with `neuclip retry RUN`
    blocked   what it needs is not done
    waiting   its turn has not come
    \b
    Example:
      neuclip status demo
    """
    from pipeline.launch.run import Run
    from pipeline.launch.status import print_status

    run = Run.open(run_dir)
    state = _state_of(run)
    if as_json:
        click.echo(json.dumps(state.to_json(), indent=2))
    else:
        print_status(run, state)


@click.command()
@run_dir_argument
@click.argument("stage", required=False)
@click.argument("element", type=click.IntRange(0), required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on while it runs.")
def logs(run_dir: Path, stage: str | None, element: int | None, follow: bool) -> None:
    """What the last attempt at an element of RUN said.

    Without ELEMENT, or STAGE: of one that runs; else of one that failed; else of the last that is done.

    \b
    Examples:
      neuclip logs demo --follow
      neuclip logs demo download 2
    """
    from pipeline.launch.logs import choose, show_log
    from pipeline.launch.run import Run

    run = Run.open(run_dir)
    chosen = choose(run, _state_of(run), stage, element)
    show_log(run, *chosen, follow, lambda text: click.echo(text, nl=False))


@click.command()
@run_dir_argument
@selection_options
@jobs_option
def retry(run_dir: Path, first: str | None, only: str | None, jobs: int) -> None:
    """Do what failed or is missing in RUN, and what depends on it.

    The plan is the one that stands; what is done stays done. A run that was submitted is submitted again, unless it is
    in the queue, with the settings of the last time.

    \b
    Example:
      neuclip retry demo
    """
    from pipeline.launch.local import bring_to_done
    from pipeline.launch.outcome import print_outcome
    from pipeline.launch.plan import open_plan
    from pipeline.launch.slurm import backend

    paths = open_plan(run_dir)
    if backend.was_submitted(paths):
        from pipeline.cli.slurm import say
        from pipeline.launch.slurm.site import kept_cluster

        say(backend.submit_run(paths, kept_cluster(paths.root), first, only), run_dir)
        return
    print_outcome(*bring_to_done(paths, jobs, first, only))


def _state_of(run: Run) -> RunState:
    """With what the scheduler knows of a run that was submitted, where it answers."""
    from pipeline.launch.slurm import backend
    from pipeline.launch.slurm.ended import explained
    from pipeline.launch.state import run_state

    try:
        return explained(run.paths, run_state(run, backend.job_states(run.paths)))
    except UserError as error:
        click.echo(f"warning: jobs are not shown: {error}", err=True)
        return run_state(run)
