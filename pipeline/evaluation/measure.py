"""What a worker does with a part of a task: its samples through the model, and what came of them into a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from pipeline.evaluation.classifier_cache import CLASSIFIERS, ClassifierCache
from pipeline.evaluation.encoder import Encoder, Precision
from pipeline.evaluation.kinds import KINDS
from pipeline.evaluation.merge import lock_path
from pipeline.evaluation.parts import Part
from pipeline.evaluation.records import Record, part_path, read_part, write_record
from pipeline.evaluation.results import Stamp, code_version, current_result, library_versions
from pipeline.evaluation.task_folder import TaskFolder
from pipeline.evaluation.task_run import TaskRun, concatenated, row_count
from pipeline.evaluation.tasks import Task
from pipeline.locks import exclusive
from pipeline.models.two_tower import Exported, load_exported

Progress = Callable[[str, int, int, float], None]  # task or part, samples done, in all, share of the work that is done


@dataclass(frozen=True)
class Job:
    """What a worker has to do of one task. missing: those of its parts that are not done."""

    name: str
    task: Task
    folder: TaskFolder
    stamp: Stamp
    missing: list[Part]


class Bench:
    """A model, loaded once, and how it is to be run. Writes records below `out`.

    fresh: use no classifiers that were made before.
    """

    def __init__(
        self,
        model_folder: Path,
        model_stamp: Stamp,
        out: Path,
        device: torch.device,
        precision: Precision,
        batch_size: int,
        workers: int,
        fresh: bool,
    ) -> None:
        self._model_folder = model_folder
        self._device = device
        self._precision = precision
        self._out = out
        self._batch_size = batch_size
        self._workers = workers
        how = {"code_version": code_version(), "device": device.type, "libraries": library_versions()}
        self._cache = None if fresh else ClassifierCache(out / CLASSIFIERS, {**model_stamp, **how})

    def load(self) -> None:
        """Load the model. Raises UserError when the folder is none that open_clip can load."""
        self._exported  # noqa: B018 - read once, it is there

    @cached_property
    def _exported(self) -> Exported:
        return load_exported(self._model_folder, self._device)

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self._exported, self._device, self._precision, self._cache)

    def measure(self, part: Part, job: Job, progress: Callable[[int], None]) -> int:
        """Write the part's record, unless somebody has done so by now; returns the number of its samples.

        progress: called with the number of samples done. Raises InUse while another process is at the part.
        """
        with exclusive(lock_path(self._out, part.task, f"{part.number}-of-{part.of}"), f"{part.label} in {self._out}"):
            if current_result(self._out, part.task, job.stamp) is not None:
                return part.samples
            record = read_part(self._out, part)
            if record is None or not record.is_current(job.stamp):
                record = self._record(part, job, progress)
                write_record(part_path(self._out, part), record)
        return row_count(record.rows)

    def _record(self, part: Part, job: Job, progress: Callable[[int], None]) -> Record:
        started = time.perf_counter()
        run = TaskRun(job.task, job.folder, part.shards, self._encoder, self._batch_size, self._workers, progress)
        rows = concatenated(list(KINDS[job.task.kind].rows(run)))
        facts = {
            "part": part.identity,
            "model": self._exported.name,
            "libraries": library_versions(),
            "task": job.task.model_dump(mode="json"),
            "seconds": round(time.perf_counter() - started, 3),
        }
        return Record(rows, job.stamp, facts)


class Meter:
    """Tells `progress` how far the work is: by cost, over the parts that were missing."""

    def __init__(self, jobs: Sequence[Job], progress: Progress) -> None:
        self._progress = progress
        self._total = sum(part.cost for job in jobs for part in job.missing)
        self._done: set[Part] = set()

    def begin(self, part: Part) -> Callable[[int], None]:
        """What to call with the samples done of the part."""
        self._say(part, 0, part.samples, 0.0)

        def report(samples: int) -> None:
            if samples < part.samples:  # else it is about to end, with the right number
                self._say(part, samples, part.samples, part.cost * samples / part.samples)

        return report

    def end(self, part: Part, samples: int) -> None:
        """The part is done; it had so many samples."""
        self._done.add(part)
        self._say(part, samples, samples, 0.0)

    def _say(self, part: Part, samples: int, of: int, cost: float) -> None:
        done = cost + sum(part.cost for part in self._done)
        self._progress(part.label, samples, of, done / self._total if self._total else 1.0)
