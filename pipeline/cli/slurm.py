"""The commands `submit` and `cancel`: a run on SLURM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import selection_options, sweep_option
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.launch.slurm.backend import Submitted


@click.command()
@click.argument("recipe")
@click.option("--workdir", type=click.Path(path_type=Path), help="Run directory, on a disk that all nodes share.")
@click.option(
    "--cluster",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Settings of the site, as in slurm/cluster.yaml; else $NEUCLIP_CLUSTER, else those of the last submission.",
)
@click.option("--dry-run", is_flag=True, help="Print scripts, calls of sbatch and totals; submit and write nothing.")
@selection_options
@sweep_option
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def submit(
    recipe: str,
    workdir: Path | None,
    cluster: Path | None,
    dry_run: bool,
    first: str | None,
    only: str | None,
    sweep: tuple[str, ...],
    overrides: tuple[str, ...],
) -> None:
    """Every stage of RECIPE as jobs of SLURM that follow one another.

    Work items, members of a sweep and groups of evaluation tasks are elements of arrays. Jobs that are preempted or
    reach their time limit save and come back by themselves. Given again, the command submits what is missing and
    neither queued nor running; a changed recipe is refused with the difference.

    \b
    Examples:
      neuclip submit demo --dry-run
      neuclip submit cc12m --workdir /shared/runs/cc12m --cluster site.yaml --sweep objective=neuclip,openclip
    Then: neuclip status, logs, retry and cancel /shared/runs/cc12m; docs/slurm.md
    """
    from pipeline.config.loader import load_recipe
    from pipeline.launch.settle import settle
    from pipeline.launch.slurm import backend
    from pipeline.launch.sweep import sweep_members

    if workdir is None and not dry_run:
        raise UserError("--workdir is missing: say where the run is kept, or ask for a --dry-run")
    workdir = workdir or Path("RUN")
    settled = settle(load_recipe(recipe, overrides), workdir, sweep_members(sweep))
    of_site = backend.checked_cluster(settled, cluster)
    if dry_run:
        from pipeline.launch.slurm.dry_run import describe

        click.echo(describe(settled, of_site, first, only))
        return
    say(backend.submit_run(settled, of_site, first, only), workdir)


@click.command()
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
def cancel(run_dir: Path) -> None:
    """Take RUN_DIR's jobs out of SLURM's queue, and end those that run.

    What is done stays done: `neuclip retry RUN_DIR` goes on from there. Other runs' jobs are left alone.

    \b
    Example:
      neuclip cancel runs/birds
    """
    from pipeline.launch.run import Run
    from pipeline.launch.slurm import backend
    from pipeline.launch.slurm.arrays import compressed

    run = Run.open(run_dir)
    cancelled = backend.cancel_run(run)
    for stage in run.stages:
        numbers = [number for name, number in cancelled if name == stage.name]
        if numbers:
            names = sorted({cancelled[stage.name, number].job for number in numbers}, key=int)
            click.echo(f"cancelled {stage.name} {compressed(numbers)} (job {', '.join(names)})")
    if not cancelled:
        click.echo(f"{run_dir} has no jobs in the queue.")


def say(submitted: Submitted, run_dir: Path) -> None:
    """What was submitted, and what to type next."""
    from pipeline.launch.slurm.arrays import compressed

    for submission, job in zip(submitted.submissions, submitted.ids, strict=True):
        which = f" {compressed(submission.elements)}" if submission.stage.elements > 1 else ""
        click.echo(f"job {job}: {submission.stage.name}{which}")
    if submitted.in_queue:
        click.echo(f"in the queue already: {submitted.in_queue} elements")
    if submitted.submissions or submitted.in_queue:
        click.echo(f"neuclip status {run_dir} tells where they stand.")
    else:
        click.echo(f"Nothing to submit: what was asked for is done in {run_dir}.")
