"""The commands `neuclip evaluate` and `neuclip aggregate`: scores of a model, and what they come to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pipeline.cli.eval_data import draw_tasks
from pipeline.cli.options import tasks_option
from pipeline.errors import UserError
from pipeline.locks import taking_turns

FABRICATED_DATA = "evaldata"  # below --out
UNTRAINED_MODEL = "tiny-with-random-weights"  # the folder's name is what every result calls the model
_mlflow = click.option(
    "--mlflow/--no-mlflow",
    default=None,
    help="Record the scores in MLflow, in the checkpoint's run.  [default: if the results lie in a run directory]",
)


@click.command()
@click.argument("model", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the tasks' files; of DataComp's where it has no tasks.yaml.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for <task>.json and aggregate.json.")
@tasks_option
@click.option(
    "--fabricated",
    is_flag=True,
    help=f"Draw the data to OUT/{FABRICATED_DATA}; without MODEL, take a tiny one with random weights.",
)
@click.option("--rank", default=0, show_default=True, type=click.IntRange(0), help="Which of the workers this is.")
@click.option(
    "--world-size", default=1, show_default=True, type=click.IntRange(1), help="Workers that share the tasks."
)
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16"]))
@click.option("--device", help="As torch calls it.  [default: cuda where there is one, else cpu]")
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(1))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(0), help="Processes that decode images.")
@_mlflow
@click.option("--force", is_flag=True, help="Repeat tasks whose result stands.")
@click.option(
    "--compare",
    nargs=2,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="A B",
    help="Evaluate nothing: differences of the results in B from those in A, with intervals.",
)
@click.option("--resamples", default=1000, show_default=True, type=click.IntRange(100), help="Of --compare.")
@click.option("--seed", default=0, show_default=True, help="Of --compare.")
@click.option("--json", "as_json", is_flag=True, help="Of --compare: the differences as JSON.")
def evaluate(compare: tuple[Path, Path] | None, resamples: int, seed: int, as_json: bool, **options: Any) -> None:
    """Evaluate an exported MODEL on tasks in DataComp's formats.

    A result that stands (same weights, task, data and code) is kept. A task that fails does not stop the others;
    the command then ends with 2 and names it. The scores are added to MODEL's README.md.

    With --world-size N this is worker --rank of N: it does its share, and `neuclip aggregate` gives the average once
    all have. They may run in any order, or one after the other.

    \b
    Example:
      neuclip evaluate model --data evaldata --out results
      neuclip evaluate --fabricated --tasks all --out try    everything runs, the scores mean nothing
      neuclip evaluate model --data evaldata --out results --rank 3 --world-size 8
      neuclip evaluate --compare results-before results-after
    """
    if compare is None:
        _evaluate(**options)
    elif options["model"] or options["data"] or options["out"] or options["fabricated"]:
        raise UserError("--compare takes two folders of results, and neither MODEL, --data, --out nor --fabricated")
    else:
        _compare(*compare, _chosen(options["tasks"]), resamples, seed, as_json)


def _evaluate(
    model: Path | None,
    data: Path | None,
    out: Path | None,
    tasks: str,
    fabricated: bool,
    rank: int,
    world_size: int,
    mlflow: bool | None,
    **options: Any,
) -> None:
    from pipeline.evaluation.aggregate import aggregate
    from pipeline.evaluation.suite import evaluate
    from pipeline.launch.evaluation_progress import evaluation_progress
    from pipeline.launch.scores import print_scores
    from pipeline.models.model_card import write_card

    if rank >= world_size:
        raise UserError(f"--rank {rank} is none of {world_size} workers: they are 0 to {world_size - 1}")
    if fabricated and data is not None:
        raise UserError("--fabricated draws its own data: leave out --data")
    if out is None:
        raise UserError("--out is missing: name a folder for the results")
    if fabricated:
        model, data = model or _untrained(out), _drawn(out)
    if model is None or data is None:
        raise UserError(f"{'MODEL' if model is None else '--data'} is missing: name it, or try with --fabricated")
    chosen = _chosen(tasks)
    with evaluation_progress() as progress:
        evaluate(model, data, out, chosen, rank=rank, world_size=world_size, progress=progress, **options)
    if world_size > 1:
        then = f"neuclip aggregate {out} --data {data} --model {model}"
        click.echo(f"worker {rank} of {world_size} is done. Once all are: {then}")
        return
    summary = aggregate(out, data, chosen)
    write_card(model, summary)
    _record(out, summary, mlflow)
    print_scores(summary)


def _compare(a: Path, b: Path, tasks: Any, resamples: int, seed: int, as_json: bool) -> None:
    from pipeline.evaluation.compare import compare
    from pipeline.launch.scores import print_comparison

    comparison = compare(a, b, tasks, resamples, seed)
    if as_json:
        click.echo(json.dumps(comparison, indent=2))
    else:
        print_comparison(comparison)


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help=f"The folder that they are of.  [default: RESULTS/{FABRICATED_DATA}, where --fabricated draws]",
)
@tasks_option
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder of the model that they are of: its README.md gets the scores.",
)
@click.option("--partial", is_flag=True, help="The mean of what is there, under the name partial_mean.")
@_mlflow
def aggregate(
    results: Path, data: Path | None, tasks: str, model: Path | None, partial: bool, mlflow: bool | None
) -> None:
    """The average of RESULTS, and of the groups of their tasks.

    Writes RESULTS/aggregate.json, and eval_results.jsonl as DataComp's evaluate.py does. Where a result is missing, or
    of other data, another task or older code, there is no average: the command ends with 2 and names the tasks.
    """
    from pipeline.evaluation.aggregate import aggregate
    from pipeline.launch.scores import print_scores
    from pipeline.models.model_card import write_card

    data = data or results / FABRICATED_DATA
    if not data.is_dir():
        raise UserError(f"no {data}: say with --data which folder the results are of")
    summary = aggregate(results, data, _chosen(tasks), partial)
    if model is not None:
        write_card(model, summary)
    _record(results, summary, mlflow)
    print_scores(summary)


def _record(out: Path, summary: dict[str, Any], mlflow: bool | None) -> None:
    from pipeline.tracking.evaluation import record_evaluation

    if mlflow is not False:
        record_evaluation(out, summary, anywhere=bool(mlflow))


def _chosen(tasks: str) -> Any:
    return tasks if tasks == "all" else tasks.split(",")


def _drawn(out: Path) -> Path:
    from pipeline.evaluation.tasks import TASKS_FILE

    data = out / FABRICATED_DATA
    with taking_turns(out / f".{FABRICATED_DATA}.lock"):  # of the workers that may start at once
        if not (data / TASKS_FILE).is_file():  # it is written last
            draw_tasks(data)
    return data


def _untrained(out: Path) -> Path:
    from pipeline.models.untrained import write_untrained

    click.echo("No MODEL named: this is a tiny one with random weights; its scores mean nothing.")
    with taking_turns(out / f".{UNTRAINED_MODEL}.lock"):
        return write_untrained(out / UNTRAINED_MODEL)
