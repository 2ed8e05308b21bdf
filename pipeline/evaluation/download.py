"""`neuclip eval-data download`: a task's files from the Hugging Face hub.

`DATA/download.json` records the commit of every repository, and size and sha256 of every file that came. The commit
that was found first stays the task's, even if its branch moves on, and another one is refused; a file that is there as
recorded is not fetched again; one that was cut off is continued.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.tasks import Task, task_path
from pipeline.files import free_bytes, write_json
from pipeline.hub import HubFile, fetch, list_files
from pipeline.locks import exclusive
from pipeline.run_files import DOWNLOADS

RECORD_FILE = "download.json"
PATTERNS = {
    "webdataset": ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt", "test/*"),
    "parquet": ("*test/*.parquet",),
}
_COMMIT = re.compile("[0-9a-f]{40}")
_ADVICE = "Mend `repository` and `revision` of the task in tasks.yaml."
Report = Callable[[str, int, int], None]  # task, bytes here, bytes in all


@dataclass(frozen=True)
class Wanted:
    """The files of one task. missing: those that are not here as recorded."""

    folder: Path
    files: list[HubFile]
    missing: list[HubFile]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def missing_bytes(self) -> int:
        return sum(file.size for file in self.missing)


def plan_download(data: Path, tasks: dict[str, Task]) -> tuple[dict[str, Wanted], dict[str, str]]:
    """What the tasks need from the hub, by task, and why nothing can be had for others; nothing is written."""
    record = _recorded(data)
    plan: dict[str, Wanted] = {}
    problems: dict[str, str] = {}
    for name, task in tasks.items():
        try:
            plan[name] = _wanted(data, name, task, record)
        except UserError as error:
            problems[name] = str(error)
    return plan, problems


def download(data: Path, plan: dict[str, Wanted], report: Report) -> tuple[int, dict[str, str]]:
    """Fetch what the plan misses; returns the number of files that came, and what went wrong by task.

    Raises UserError when the disk has no room for it, or another process downloads to the same folder.
    """
    missing, free = sum(wanted.missing_bytes for wanted in plan.values()), free_bytes(data)
    if missing > free:
        raise UserError(f"{missing / 1e9:.2f} GB are missing, {data} has room for {free / 1e9:.2f} GB: choose --tasks")
    fetched = 0
    problems: dict[str, str] = {}
    with exclusive(data / ".download.lock", f"the evaluation data in {data}"):
        for name, wanted in plan.items():
            try:
                for _ in _fetch_missing(data, name, wanted, report):
                    fetched += 1
            except UserError as error:
                problems[name] = str(error)
    return fetched, problems


def _fetch_missing(data: Path, name: str, wanted: Wanted, report: Report) -> Iterator[HubFile]:
    """Yields every file once it is here and recorded."""
    record = _recorded(data)
    record["commits"][wanted.files[0].repository] = wanted.files[0].commit
    write_json(data / RECORD_FILE, record)  # before the first byte
    done = wanted.bytes - wanted.missing_bytes

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(name, done, wanted.bytes)

    advance(0)
    for file in wanted.missing:
        digest = fetch(file, wanted.folder, _ADVICE, advance)
        key = str((wanted.folder / file.path).relative_to(data))
        record["files"][key] = {"size": file.size, "sha256": digest}
        write_json(data / RECORD_FILE, record)
        yield file


def recorded_files(data: Path) -> dict[str, dict[str, Any]]:
    """{path below `data`: {size, sha256}} of the files that were downloaded."""
    return _recorded(data)["files"]


def _recorded(data: Path) -> dict[str, Any]:
    return DOWNLOADS.read(data / RECORD_FILE) or {"commits": {}, "files": {}}


def _wanted(data: Path, name: str, task: Task, record: dict[str, Any]) -> Wanted:
    """Raises UserError for a task that names no repository, and where the hub refuses or cannot be reached."""
    if task.repository is None:
        raise UserError(f"{name} names no repository to be downloaded from: put its folder into {data} yourself")
    revision = record["commits"].get(task.repository, task.revision)
    if _COMMIT.fullmatch(task.revision) and revision != task.revision:
        raise UserError(
            f"{data} has {task.repository} at commit {revision[:12]}, and tasks.yaml wants {task.revision[:12]}: "
            "scores of both could not be compared. Download to another folder, or write the former into tasks.yaml"
        )
    folder = task_path(data, name, task)
    files = list_files(task.repository, revision, PATTERNS[task.format], _ADVICE)
    return Wanted(folder, files, [file for file in files if not _is_there(data, folder / file.path, record)])


def _is_there(data: Path, target: Path, record: dict[str, Any]) -> bool:
    """Whether the file was fetched, and has the size that it had then (`check` reads every byte)."""
    recorded = record["files"].get(str(target.relative_to(data)))
    return recorded is not None and target.is_file() and target.stat().st_size == recorded["size"]
