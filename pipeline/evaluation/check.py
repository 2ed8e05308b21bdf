"""`neuclip eval-data check`: whether a task's files are whole and what its definition says, before a GPU is asked for.

Every sample of every shard is read: its label, metadata or captions as evaluation would read them, and its images at
least as far as their headers. What was downloaded has the size it had then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from pipeline.errors import UserError
from pipeline.evaluation.download import recorded_files
from pipeline.evaluation.kinds import KINDS
from pipeline.evaluation.samples import Sample, encoded_images, open_image, read_samples, sample_name
from pipeline.evaluation.task_folder import TaskFolder, open_task_folder
from pipeline.evaluation.tasks import Task
from pipeline.files import sha256_file
from pipeline.processes import die_with_parent


def check(
    data: Path, tasks: dict[str, Task], thorough: bool = False, processes: int = 1
) -> Iterator[tuple[str, str | None]]:
    """Yield every task, in order, with what is wrong with it, or None.

    thorough: decode every image, and compare sha256 with what was downloaded. processes: tasks at once.
    """
    problem = partial(_problem, data, thorough, recorded_files(data))
    if processes == 1:
        yield from zip(tasks, map(problem, tasks, tasks.values()), strict=True)
        return
    with ProcessPoolExecutor(processes, initializer=die_with_parent, initargs=(os.getpid(),)) as pool:
        yield from zip(tasks, pool.map(problem, tasks, tasks.values()), strict=True)


def _problem(data: Path, thorough: bool, recorded: dict[str, dict], name: str, task: Task) -> str | None:
    try:
        folder = open_task_folder(data, name, task)
        _as_downloaded(data, folder, thorough, recorded)
        KINDS[task.kind].check_texts(folder, task)
        _samples(folder, task, thorough)
    except (UserError, OSError) as error:
        return str(error)
    return None


def _as_downloaded(data: Path, folder: TaskFolder, thorough: bool, recorded: dict[str, dict]) -> None:
    below = f"{folder.path.relative_to(data)}/"
    for name, file in recorded.items():
        if not name.startswith(below):
            continue
        path = data / name
        if not path.is_file() or path.stat().st_size != file["size"]:
            raise UserError(f"{path} is not as it was downloaded ({file['size']} bytes): download it again")
        if thorough and sha256_file(path) != file["sha256"]:
            raise UserError(f"{path} changed since it was downloaded (sha256): remove it, and download it again")


def _samples(folder: TaskFolder, task: Task, thorough: bool) -> None:
    kind = KINDS[task.kind]
    parse = kind.parser(task)
    count, captions, width = 0, 0, None
    for sample in read_samples(folder.shards):
        try:
            _look_at_images(sample, thorough)
            target = parse(sample)
        except Exception as error:  # decoders raise what they like
            raise UserError(f"{sample_name(sample)}: {error or type(error).__name__}") from error
        count += 1
        if task.kind == "retrieval":
            captions += len(target)
        if kind.metadata is not None:
            width = width or kind.metadata(target).width
            if kind.metadata(target).width != width:
                found = kind.metadata(target).width
                raise UserError(f"{sample_name(sample)}: metadata has {found} columns, of those before {width}")
    if count != task.size:
        raise UserError(f"{folder.path} holds {count} samples, the task has {task.size}")
    if task.captions not in (None, captions):
        raise UserError(f"{folder.path} holds {captions} captions, the task has {task.captions}")


def _look_at_images(sample: Sample, thorough: bool) -> None:
    for content in encoded_images(sample):
        with open_image(content) as image:
            if thorough:
                image.load()
