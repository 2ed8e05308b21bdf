"""The commands `neuclip eval-data`: DataComp's evaluation tasks, fetched, checked, or drawn in miniature."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import tasks_option
from pipeline.errors import UserError
from pipeline.text import size

if TYPE_CHECKING:
    from pipeline.evaluation.download import Wanted
    from pipeline.evaluation.tasks import Task

_data = click.argument("data", type=click.Path(file_okay=False, path_type=Path))


@click.group("eval-data")
def eval_data() -> None:
    """DataComp's 40 evaluation tasks: what they are, and their files.

    \b
    Example:
      neuclip eval-data download evaldata --dry-run
      neuclip eval-data check evaldata
    """


@eval_data.command("list")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder of tasks of your own (tasks.yaml).  [default: DataComp's]",
)
def list_tasks(data: Path | None) -> None:
    """Names, kinds, sizes and main metrics."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.evaluation.tasks import datacomp_tasks, load_tasks

    tasks = load_tasks(data) if data else datacomp_tasks()
    table = Table("task", "kind", "main metric", "groups", box=None)
    for heading in ("samples", "classes", "chance", "cost"):
        table.add_column(heading, justify="right")
    for name, task in tasks.items():
        numbers = (f"{task.size:,}", str(task.classes or ""), _number(task.chance, ".4f"), _number(task.cost, "g"))
        table.add_row(name, task.kind, task.main_metric or "", ", ".join(task.groups), *numbers)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    averaged = sum(task.in_the_average for task in tasks.values())
    click.echo(f"{len(tasks)} tasks, {averaged} of them in the average")


@eval_data.command()
@_data
@tasks_option
@click.option("--dry-run", is_flag=True, help="Say what would be fetched; fetch nothing.")
def download(data: Path, tasks: str, dry_run: bool) -> None:
    """Fetch the tasks' files from the Hugging Face hub to DATA.

    Sizes are shown first. What is there as it was recorded is not fetched again, what was cut off is continued, and
    every file is compared with the checksum that the hub has of it. Set HF_TOKEN, or `hf auth login`, where a data set
    wants you to accept its terms. A task that cannot be had does not stop the others; the command then ends with 2.
    """
    from pipeline.evaluation.download import download, plan_download
    from pipeline.files import free_bytes
    from pipeline.launch.display import bytes_progress

    chosen = _chosen(data, tasks)
    plan, problems = plan_download(data, chosen)
    for name, wanted in plan.items():
        click.echo(_line(name, wanted))
    missing = sum(wanted.missing_bytes for wanted in plan.values())
    click.echo(f"{size(missing)} to fetch; {data} has room for {size(free_bytes(data))}")
    if not dry_run:
        with bytes_progress() as report:
            fetched, failed = download(data, plan, report)
        problems |= failed
        click.echo(f"{fetched} files fetched. Next: neuclip eval-data check {data}")
    if problems:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in problems.items())
        others = "" if len(problems) == len(chosen) else ", the others can"
        raise UserError(f"{len(problems)} of {len(chosen)} tasks cannot be had{others}:{reasons}")


@eval_data.command()
@_data
@tasks_option
@click.option("--thorough", is_flag=True, help="Decode every image, and compare checksums of what was downloaded.")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Tasks at once.")
def check(data: Path, tasks: str, thorough: bool, processes: int) -> None:
    """Prove that the files of DATA are whole, and what the tasks say, before a GPU is asked for.

    Reads every sample: counts, class names, templates, labels, metadata, captions, headers of images. Ends with 2 if a
    task is wrong, and says which file.
    """
    from pipeline.evaluation.check import check

    chosen = _chosen(data, tasks, must_exist=True)
    problems = 0
    for name, problem in check(data, chosen, thorough, processes):
        problems += problem is not None
        click.echo(f"{name}: {problem or f'{chosen[name].size:,} samples, as they should be'}")
    if problems:
        raise UserError(f"{problems} of {len(chosen)} tasks are not as they should be")


@eval_data.command()
@_data
@click.option("--images", default=48, show_default=True, type=click.IntRange(1), help="Of each task.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other images.")
@click.option(
    "--cifar10",
    type=click.Path(dir_okay=False, path_type=Path),
    help="CIFAR-10's real test set as Parquet (image, label, class_name), for the task of that name.",
)
@click.option("--processes", type=click.IntRange(1), help="Drawing processes.  [default: one per core]")
def fabricate(data: Path, **options: Any) -> None:
    """Draw all 40 tasks in miniature, in exactly the published formats.

    Coloured shapes with labels that can be learned: scores say nothing of a model but that everything works.
    """
    sizes = draw_tasks(data, **options)
    click.echo(f"{data}: {len(sizes)} tasks, {sum(sizes.values()):,} samples")


def draw_tasks(data: Path, **options: Any) -> dict[str, int]:
    """Fabricate DataComp's tasks into `data`, with progress; returns the number of samples by task."""
    from data_prep.fabricate.datacomp import fabricate_datacomp
    from pipeline.evaluation.tasks import datacomp_tasks
    from pipeline.launch.display import task_progress

    tasks = {name: task.model_dump() for name, task in datacomp_tasks().items()}
    with task_progress() as progress:
        return fabricate_datacomp(data, tasks, progress=lambda *done: progress("drawing", *done), **options)


def _chosen(data: Path, tasks: str, must_exist: bool = False) -> dict[str, Task]:
    from pipeline.evaluation.tasks import TASKS_FILE, datacomp_tasks, load_tasks, select_tasks

    known = load_tasks(data) if must_exist or (data / TASKS_FILE).is_file() else datacomp_tasks()
    return select_tasks(known, "all" if tasks == "all" else tasks.split(","))


def _line(name: str, wanted: Wanted) -> str:
    first = wanted.files[0]
    there = len(wanted.files) - len(wanted.missing)
    files = f"{len(wanted.files)} files" + (f", {there} already here" if there else "")
    return f"{name:48} {size(wanted.bytes):>10} in {files}  {first.repository}@{first.commit[:12]}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
