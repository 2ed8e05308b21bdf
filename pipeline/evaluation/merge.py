"""A task's result, from the records of its parts: made by whoever has done the last one, or asks for the average.

One part or many, it is the same: the rows of all samples in the order of the shards, and the metrics of those.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError
from pipeline.evaluation.kinds import KINDS
from pipeline.evaluation.metadata import check_widths
from pipeline.evaluation.parts import cut
from pipeline.evaluation.records import (
    Record,
    forget_parts,
    joined,
    part_path,
    read_part,
    samples_path,
    write_record,
)
from pipeline.evaluation.results import Result, Stamp, current_result, error_path, result_path, task_stamp
from pipeline.evaluation.task_folder import TaskFolder
from pipeline.evaluation.task_run import Rows, row_count
from pipeline.evaluation.tasks import Task, file_name
from pipeline.files import sha256_file, write_json
from pipeline.locks import taking_turns

LOCKS = ".locks"


def lock_path(out: Path, task: str, what: str) -> Path:
    """The lock on a part of a task, or on its result."""
    return out / LOCKS / f"{file_name(task)}.{what}"


def merge(out: Path, name: str, task: Task, folder: TaskFolder, stamp: Stamp | None = None) -> Result | None:
    """The task's result, made of the records of its parts unless it is there; None where one of them is missing.

    stamp: of model and task; without, the model is that of the first part. Raises UserError where the records are not
    of the samples that the task has.
    """
    parts = cut(name, task, folder)
    with taking_turns(lock_path(out, name, "result")):
        records = [record for part in parts if (record := read_part(out, part)) is not None]
        if stamp is None:
            stamp = {**(records[0].stamp if records else {}), **task_stamp(task, folder)}
        result = current_result(out, name, stamp)
        if result is None:
            if len(records) < len(parts) or not all(record.is_current(stamp) for record in records):
                return None
            record = joined(records)
            digests = [sha256_file(part_path(out, part)) for part in parts]
            result = {**_scores(name, task, folder, record), "parts": digests}
            write_record(samples_path(out, name), record)
            write_json(result_path(out, name), result)
        error_path(out, name).unlink(missing_ok=True)
        forget_parts(out, name)
        return result


def _scores(name: str, task: Task, folder: TaskFolder, record: Record) -> Result:
    _check(task, folder, record.rows)
    metrics = KINDS[task.kind].metrics(task, record.rows)
    if task.main_metric is not None and metrics[task.main_metric] is None:
        raise UserError(f"{folder.path} has no sample that counts for {task.main_metric}, the task's main metric")
    return {
        "task": name,
        "title": task.title,
        "kind": task.kind,
        "main_metric": task.main_metric,
        "score": None if task.main_metric is None else metrics[task.main_metric],
        "chance": task.chance,
        "metrics": metrics,
        "n": task.size,
        "seconds": record.facts["seconds"],
        "model": record.facts["model"],
        **record.stamp,
        "libraries": record.facts["libraries"],
    }


def _check(task: Task, folder: TaskFolder, rows: Rows) -> None:
    """Raises UserError unless the rows are of the samples that the task has."""
    samples = row_count(rows)
    if samples > task.size:
        raise UserError(f"{folder.path} holds more than the {task.size} samples of the task: {samples}")
    if samples < task.size:
        raise UserError(f"{folder.path} ends after {samples} of {task.size} samples: a shard is cut short or missing")
    if task.captions is not None and task.captions != int(rows["captions"].sum()):
        raise UserError(f"{folder.path} holds {int(rows['captions'].sum())} captions, the task has {task.captions}")
    check_widths(rows, folder.path)
