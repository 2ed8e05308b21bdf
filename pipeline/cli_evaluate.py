"""The commands `neuclip evaluate` and `neuclip aggregate`: scores of a model, and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.cli_eval_data import draw_tasks
from pipeline.errors import UserError

FABRICATED_DATA = "evaldata"  # below --out
UNTRAINED_MODEL = "tiny-with-random-weights"  # the folder's name is what every result calls the model
_tasks = click.option("--tasks", default="all", show_default=True, help="Names separated by commas, or all.")


@click.command()
@click.argument("model", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the tasks' files; of DataComp's where it has no tasks.yaml.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for <task>.json and aggregate.json."
)
@_tasks
@click.option(
    "--fabricated",
    is_flag=True,
    help=f"Draw the data to OUT/{FABRICATED_DATA}; without MODEL, take a tiny one with random weights.",
)
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(1))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(0), help="Processes that decode images.")
@click.option("--force", is_flag=True, help="Repeat tasks whose result stands.")
def evaluate(model: Path | None, data: Path | None, out: Path, tasks: str, fabricated: bool, **options: Any) -> None:
    """Evaluate an exported MODEL on tasks in DataComp's formats.

    A result that stands (same weights, task, data and code) is kept. A task that fails does not stop the others;
    the command then ends with 2 and names it. The scores are added to MODEL's README.md.

    \b
    Example:
      neuclip evaluate model --data evaldata --out results
      neuclip evaluate --fabricated --tasks all --out try    everything runs, the scores mean nothing
    """
    from pipeline.evaluation.aggregate import aggregate
    from pipeline.evaluation.suite import evaluate
    from pipeline.launch.display import task_progress
    from pipeline.launch.scores import print_scores
    from pipeline.models.model_card import write_card

    if fabricated and data is not None:
        raise UserError("--fabricated draws its own data: leave out --data")
    if fabricated:
        model, data = model or _untrained(out), _drawn(out)
    if model is None or data is None:
        raise UserError(f"{'MODEL' if model is None else '--data'} is missing: name it, or try with --fabricated")
    chosen = _chosen(tasks)
    with task_progress() as progress:
        evaluate(model, data, out, chosen, progress=progress, **options)
    summary = aggregate(out, data, chosen)
    write_card(model, summary)
    print_scores(summary)


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help=f"The folder that they are of.  [default: RESULTS/{FABRICATED_DATA}, where --fabricated draws]",
)
@_tasks
@click.option("--partial", is_flag=True, help="The mean of what is there, under the name partial_mean.")
def aggregate(results: Path, data: Path | None, tasks: str, partial: bool) -> None:
    """The average of RESULTS, and of the groups of their tasks.

    Writes RESULTS/aggregate.json, and eval_results.jsonl as DataComp's evaluate.py does. Where a result is missing, or
    of other data, another task or older code, there is no average: the command ends with 2 and names the tasks.
    """
    from pipeline.evaluation.aggregate import aggregate
    from pipeline.launch.scores import print_scores

    data = data or results / FABRICATED_DATA
    if not data.is_dir():
        raise UserError(f"no {data}: say with --data which folder the results are of")
    print_scores(aggregate(results, data, _chosen(tasks), partial))


def _chosen(tasks: str) -> Any:
    return tasks if tasks == "all" else tasks.split(",")


def _drawn(out: Path) -> Path:
    from pipeline.evaluation.tasks import TASKS_FILE

    data = out / FABRICATED_DATA
    if not (data / TASKS_FILE).is_file():  # it is written last
        draw_tasks(data)
    return data


def _untrained(out: Path) -> Path:
    from pipeline.models.untrained import write_untrained

    click.echo("No MODEL named: this is a tiny one with random weights; its scores mean nothing.")
    return write_untrained(out / UNTRAINED_MODEL)
