"""The commands that read runs: `neuclip runs`, `compare`, `watch` and `ui`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

_one_run = click.argument("run_dir", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))


@click.command()
@click.argument("roots", nargs=-1, required=True, metavar="ROOT...")
@click.option("--where", metavar="CONDITION", help="Only runs that meet it: objective=neuclip and average>0.2")
@click.option("--sort", metavar="KEY", help="A column or a setting; -KEY from the largest down.")
@click.option("--csv", "form", flag_value="csv", help="As CSV, numbers as they are.")
@click.option("--json", "form", flag_value="json", help="As JSON, one object per run.")
def runs(roots: tuple[str, ...], where: str | None, sort: str | None, form: str | None) -> None:
    """List the runs in and below each ROOT.

    State, objective, corpus, samples, training time, GPU-hours, last loss and average of each. Where not all tasks
    were evaluated there is no average, but a partial mean that says so. ROOT is a folder or a quoted pattern.

    CONDITION compares columns (run, state, objective, corpus, seed, samples, seconds, gpu_hours, cpu_hours, loss,
    average, partial_mean, tasks, of, damaged) and settings by their dotted names, with and, or, not, in.

    \b
    Example:
      neuclip runs runs --where "state=evaluated and train.global_batch_size>=1024" --sort -average
    """
    from pipeline.report.compare.find import find_runs
    from pipeline.report.compare.listing import as_csv, as_json, as_table, select, warnings

    rows = select(find_runs(roots), where, sort)
    if form == "csv":
        click.echo(as_csv(rows), nl=False)
    elif form == "json":
        click.echo(as_json(rows))
    else:
        _console().print(as_table(rows))
    for warning in warnings(rows):
        click.echo(f"warning: {warning}", err=True)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="RUN...")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Also write the page: one file.")
@click.option("--group-by", metavar="KEYS", help="Settings, with commas between; default: all that differ but seed.")
@click.option("--baseline", metavar="RUN|GROUP", help="What differences are to; default: openclip, or the first group.")
def compare(paths: tuple[str, ...], html: Path | None, group_by: str | None, baseline: str | None) -> None:
    """What differs between runs, what each scored, and whether that is more than noise.

    RUN is a run's folder, a sweep's, one above several runs, or a quoted pattern. Runs that differ only in their seed
    are a group: its mean is shown with its standard error. Runs that are not finished are shown with what they have.

    \b
    Example:
      neuclip compare runs/birds-neuclip-* runs/birds-openclip-* --html compare.html
    """
    from pipeline.report.compare.comparison import compare
    from pipeline.report.compare.find import find_runs
    from pipeline.report.compare.page import write_page
    from pipeline.report.compare.terminal import print_comparison

    comparison = compare(find_runs(paths), group_by, baseline)
    print_comparison(comparison, _console())
    if html is not None:
        write_page(comparison, html)
        click.echo(f"page: {html}")


@click.command()
@_one_run
@click.option("--once", is_flag=True, help="Print what there is now, and end.")
def watch(run_dir: Path, once: bool) -> None:
    """Follow a training run on the terminal.

    Progress, rate, expected end, curves and warnings, from the run's own files: on any machine that sees them. Ends
    when the run ends, or with Ctrl-C, which the run does not notice.

    \b
    Example:
      neuclip watch runs/birds
    """
    from rich.console import Console

    from pipeline.report.watch import watch

    watch(run_dir.resolve(), Console(), once)


@click.command()
@_one_run
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
def ui(run_dir: Path, port: int) -> None:
    """Open MLflow on what RUN has tracked.

    Prints the address and serves it on this machine until Ctrl-C. From a cluster's login node, forward the port:
    ssh -L 5000:127.0.0.1:5000 LOGIN_NODE.

    \b
    Example:
      neuclip ui runs/birds --port 5001
    """
    from pipeline.report.mlflow_ui import HOST, become_ui, refuse_taken, tracking_store

    store = tracking_store(run_dir)
    if store.startswith(("http://", "https://")):
        click.echo(f"This run is tracked by a server: open {store}")
        return
    refuse_taken(port)
    click.echo(f"MLflow on {store}: open http://{HOST}:{port} (Ctrl-C ends it)")
    become_ui(store, port)


def _console() -> Console:
    """As wide as the terminal; wide enough for a table where there is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)
