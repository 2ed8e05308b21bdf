"""Commands on a run as a whole: `neuclip work`, `status`, `logs`, `retry`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

run_dir_argument = click.argument("run_dir", metavar="RUN", type=click.Path(file_okay=False, path_type=Path))
jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1),
    default=lambda: max(1, (os.cpu_count() or 1)),
    show_default="number of cores",
    help="Elements of one stage (work items of ingest) that run at once.",
)


@click.command()
@run_dir_argument
@click.argument("stage")
@click.argument("element", type=click.IntRange(0), default=0)
@click.option(
    "--launcher",
    type=click.Choice(["local", "srun"]),
    default="local",
    show_default=True,
    help="What starts the ranks of training: torchrun on this machine, or srun in a SLURM job.",
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
    status = work(run, run.stage(stage), element, launcher, job)
    if launcher == "srun" and job is not None:
        from pipeline.launch.slurm.after import after

        after(run, stage, element, status, job)
    sys.exit(status)
