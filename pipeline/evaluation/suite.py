"""One exported model on many tasks: loaded once, each task fails alone, a rerun does what is missing.

The work is dealt out in parts (`parts`); what a part came to is a record (`records`), and a result is made of the
records of all parts of its task (`merge`), by whoever has done the last one. Workers share files and nothing else.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from pipeline.errors import UserError
from pipeline.evaluation.aggregate import withdraw
from pipeline.evaluation.encoder import Precision
from pipeline.evaluation.measure import Bench, Job, Meter, Progress
from pipeline.evaluation.merge import merge
from pipeline.evaluation.parts import Part, by_task, cut_all, share
from pipeline.evaluation.records import part_path, read_part
from pipeline.evaluation.results import (
    Result,
    Stamp,
    current_result,
    model_stamp,
    result_path,
    task_stamp,
    write_error,
)
from pipeline.evaluation.task_folder import open_task_folder
from pipeline.evaluation.tasks import load_tasks, select_tasks
from pipeline.evaluation.workers import worker_path, write_worker
from pipeline.locks import InUse


def _silent(what: str, done: int, total: int, share: float) -> None:
    """Progress that nobody watches."""


def evaluate(
    model_folder: Path,
    data: Path,
    out: Path,
    tasks: Sequence[str] | Literal["all"] = "all",
    *,
    rank: int = 0,
    world_size: int = 1,
    batch_size: int = 128,
    workers: int = 1,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
    force: bool = False,
    progress: Progress = _silent,
) -> list[Result]:
    """Do the share of worker `rank` of `world_size` in the chosen tasks of `data/tasks.yaml`.

    Results are `out/<task>.json`. Returns those of this worker's tasks that are there then, in the chosen order: of a
    task whose other parts are still to be done there is none yet. `out/workers/<rank>-of-<world_size>.json` says that
    the share is done.

    model_folder: what `neuclip export` wrote. workers: loader processes. device: by default CUDA where there
    is one. precision: bf16 runs the towers under autocast. force: repeat what is current too.
    progress: called with (task or part, samples done, samples in all, share of the missing work that is done, by cost)
    at the beginning, after every batch and at the end; once for a task whose result is current.

    A task that fails leaves `out/<task>.error.json` instead of a result, and the others go on. A part that another
    process is at is left to it, and tried again when everything else is done.
    Raises UserError at once for a wrong choice, tasks.yaml or model, and at the end, with their names, if
    tasks failed.
    """
    started = time.perf_counter()
    chosen = select_tasks(load_tasks(data), tasks)
    model = model_stamp(model_folder, precision)
    mine = by_task(share(cut_all(data, chosen), rank, world_size))
    stamps: dict[str, Stamp] = {}
    results: dict[str, Result] = {}
    failures: dict[str, str] = {}
    jobs: list[Job] = []
    for name, parts in mine.items():
        with _failing_alone(out, name, failures):
            task, folder = chosen[name], open_task_folder(data, name, chosen[name])
            stamps[name] = {**model, **task_stamp(task, folder)}
            if force:
                result_path(out, name).unlink(missing_ok=True)
                for part in parts:
                    part_path(out, part).unlink(missing_ok=True)
            result = current_result(out, name, stamps[name])
            if result is not None:
                results[name] = result
                progress(name, task.size, task.size, 0.0)
            else:
                missing = [part for part in parts if not _is_done(out, part, stamps[name])]
                jobs.append(Job(name, task, folder, stamps[name], missing))
    if jobs or failures:
        withdraw(out)
        worker_path(out, rank, world_size).unlink(missing_ok=True)
    bench = Bench(model_folder, model, out, _device(device), precision, batch_size, workers, fresh=force)
    if any(job.missing for job in jobs):
        bench.load()
    results |= _work(out, jobs, bench, Meter(jobs, progress), failures)
    if failures:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in failures.items())
        others = "" if len(failures) == len(mine) else f", the results of the others are in {out}"
        raise UserError(f"{len(failures)} of {len(mine)} tasks failed{others}:{reasons}")
    write_worker(out, rank, world_size, mine, stamps, time.perf_counter() - started)
    return [results[name] for name in chosen if name in results]


def _device(named: torch.device | str | None) -> torch.device:
    try:
        return torch.device(named or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"device: {error}") from error


def _work(out: Path, jobs: Sequence[Job], bench: Bench, meter: Meter, failures: dict[str, str]) -> dict[str, Result]:
    """Do all jobs; returns the results that are there then. What another process is at comes again, last."""
    results: dict[str, Result] = {}
    queue = deque(jobs)
    postponed: set[str] = set()
    while queue:
        job = queue.popleft()
        try:
            with _failing_alone(out, job.name, failures):
                for part in job.missing:
                    meter.end(part, bench.measure(part, job, meter.begin(part)))
                result = merge(out, job.name, job.task, job.folder, job.stamp)
                if result is not None:
                    results[job.name] = result
        except InUse as error:
            if job.name in postponed:
                failures[job.name] = str(error)
            else:
                postponed.add(job.name)
                queue.append(job)
    return results


def _is_done(out: Path, part: Part, stamp: Stamp) -> bool:
    record = read_part(out, part)
    return record is not None and record.is_current(stamp)


@contextmanager
def _failing_alone(out: Path, task: str, failures: dict[str, str]) -> Iterator[None]:
    """What goes wrong inside, but for InUse, becomes an entry of `failures`, and an error file in place of a result."""
    try:
        yield
    except InUse:
        raise
    except Exception as error:
        expected = isinstance(error, UserError)
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        failures[task] = reason
        write_error(out, task, reason, None if expected else traceback.format_exc())
