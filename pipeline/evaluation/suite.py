"""One exported model on many tasks: loaded once, each task fails alone, a rerun does what is missing."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from pipeline.errors import UserError
from pipeline.evaluation.aggregate import withdraw
from pipeline.evaluation.encoder import Encoder, Precision
from pipeline.evaluation.kinds import KINDS
from pipeline.evaluation.results import (
    Result,
    Stamp,
    error_path,
    is_current,
    library_versions,
    model_stamp,
    read_result,
    result_path,
    task_stamp,
    write_error,
)
from pipeline.evaluation.task_folder import TaskFolder, open_task_folder
from pipeline.evaluation.task_run import Progress, TaskRun
from pipeline.evaluation.tasks import load_tasks, select_tasks
from pipeline.files import write_json
from pipeline.models.two_tower import load_exported


def _silent(task: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def evaluate(
    model_folder: Path,
    data: Path,
    out: Path,
    tasks: Sequence[str] | Literal["all"] = "all",
    *,
    batch_size: int = 128,
    workers: int = 1,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
    force: bool = False,
    progress: Progress = _silent,
) -> list[Result]:
    """Write `out/<task>.json` for every chosen task of `data/tasks.yaml` and return them in the chosen order.

    model_folder: what `neuclip export` wrote. workers: loader processes. device: by default CUDA where there
    is one. precision: bf16 runs the towers under autocast. force: also repeat what is current.
    progress: called with (task, images done, images in all), once for a task whose result is current.

    A task that fails leaves `out/<task>.error.json` instead of a result, and the others go on.
    Raises UserError at once for a wrong choice, tasks.yaml or model, and at the end, with their names, if
    tasks failed.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = select_tasks(load_tasks(data), tasks)
    model = model_stamp(model_folder, precision)
    results: dict[str, Result] = {}
    failures: dict[str, str] = {}
    pending: dict[str, tuple[TaskFolder, Stamp]] = {}
    for name, task in chosen.items():
        with _failing_alone(out, name, failures):
            folder = open_task_folder(data, name, task)
            stamp = {**model, **task_stamp(task, folder)}
            result = read_result(out, name)
            if result is not None and is_current(result, stamp) and not force:
                results[name] = result
                progress(name, task.size, task.size)
            else:
                pending[name] = (folder, stamp)
    if pending or failures:
        withdraw(out)
    if pending:
        exported = load_exported(model_folder, device)
        encoder = Encoder(exported, device, precision)
        for name, (folder, stamp) in pending.items():
            with _failing_alone(out, name, failures):
                run = TaskRun(name, chosen[name], folder, encoder, batch_size, workers, progress)
                results[name] = {
                    **_measure(run),
                    "model": exported.name,
                    **stamp,
                    "libraries": library_versions(),
                }
                write_json(result_path(out, name), results[name])
                error_path(out, name).unlink(missing_ok=True)
    if failures:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in failures.items())
        raise UserError(
            f"{len(failures)} of {len(chosen)} tasks failed, the results of the others are in {out}:{reasons}"
        )
    return [results[name] for name in chosen]


def _measure(run: TaskRun) -> Result:
    task = run.task
    start = time.perf_counter()
    metrics = KINDS[task.kind].evaluate(run)
    return {
        "task": run.name,
        "title": task.title,
        "kind": task.kind,
        "main_metric": task.main_metric,
        "score": None if task.main_metric is None else metrics[task.main_metric],
        "chance": task.chance,
        "metrics": metrics,
        "n": task.size,
        "seconds": round(time.perf_counter() - start, 3),
    }


@contextmanager
def _failing_alone(out: Path, task: str, failures: dict[str, str]) -> Iterator[None]:
    """What goes wrong inside becomes an entry of `failures`, and an error file in place of the result."""
    try:
        yield
    except Exception as error:
        expected = isinstance(error, UserError)
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        failures[task] = reason
        write_error(out, task, reason, None if expected else traceback.format_exc())
