"""What each sample of a task came to.

OUT/parts/<task>/<part>-of-<parts>.safetensors   a part that is done, until the task's result is made of all of them
OUT/samples/<task>.safetensors                   all samples of a task that has a result, for comparing it with another
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.evaluation.parts import Part
from pipeline.evaluation.results import Stamp, library_versions
from pipeline.evaluation.task_run import Rows, concatenated
from pipeline.evaluation.tasks import file_name
from pipeline.evaluation.tensor_file import read_tensors, write_tensors
from pipeline.run_files import RECORD

PARTS, SAMPLES = "parts", "samples"


class Record(NamedTuple):
    """rows: of the samples. stamp: what identifies the model and the task that they are of.

    facts: {model, libraries: {name: version}, seconds, task: its definition}; that of a part also says {part: which}.
    """

    rows: Rows
    stamp: Stamp
    facts: dict[str, Any]

    def is_current(self, stamp: Stamp) -> bool:
        """Whether it is what would be made today; also by its libraries, as no result is made with two versions."""
        return self.stamp == stamp and self.facts["libraries"] == library_versions()


def part_path(out: Path, part: Part) -> Path:
    """Where the record of a part goes."""
    return out / PARTS / file_name(part.task) / f"{part.number}-of-{part.of}.safetensors"


def samples_path(out: Path, task: str) -> Path:
    """Where the record of a task goes."""
    return out / SAMPLES / f"{file_name(task)}.safetensors"


def write_record(path: Path, record: Record) -> None:
    """Write it, atomically."""
    write_tensors(path, record.rows, {"stamp": record.stamp, "facts": record.facts})


def read_record(path: Path) -> Record | None:
    """The record; None where there is none that is whole."""
    file = read_tensors(path)
    if file is None or RECORD.problem(file.about):
        return None
    return Record(file.tensors, file.about["stamp"], file.about["facts"])


def read_part(out: Path, part: Part) -> Record | None:
    """The record of a part; None where there is none that is whole and this part's."""
    record = read_record(part_path(out, part))
    return record if record is not None and record.facts.get("part") == part.identity else None


def joined(records: Sequence[Record]) -> Record:
    """The records of all parts of a task as one, `seconds` added up."""
    seconds = round(sum(record.facts["seconds"] for record in records), 3)
    facts = {key: records[0].facts[key] for key in ("model", "libraries", "task")}
    return Record(concatenated([record.rows for record in records]), records[0].stamp, {**facts, "seconds": seconds})


def forget_parts(out: Path, task: str) -> None:
    """Remove the records of a task's parts, of any model and cut."""
    shutil.rmtree(out / PARTS / file_name(task), ignore_errors=True)
