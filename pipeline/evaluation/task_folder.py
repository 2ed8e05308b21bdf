"""The files of one task, as DataComp publishes them: WebDataset in `wds_<task>_test`, or Parquet.

classnames.txt                           one class per line; a label counts them from 0
zeroshot_classification_templates.txt    one prompt per line, `{c}` is the class
test/nshards.txt, test/0.tar, ...        WebDataset shards: image, `cls`, `txt` or `npy` per sample

Of format parquet are the data sets of the Hugging Face hub: every *.parquet in the folder, in the order of their paths.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.evaluation.tasks import Task, task_path
from pipeline.files import fingerprint, sha256_file

CLASSNAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
EDGE_BYTES = 1 << 20


@dataclass(frozen=True)
class TaskFolder:
    """An opened task folder: all of its shards exist.

    shards: in the order of their numbers. opened: size and time of change that its files had then.
    """

    path: Path
    shards: tuple[Path, ...]
    opened: dict[Path, tuple[int, int]]

    def classnames(self, expected: int | None) -> list[str]:
        """The C class names. Raises UserError unless there are `expected` of them."""
        names = self._lines(CLASSNAMES_FILE)
        if expected not in (None, len(names)):
            raise UserError(f"{self.path / CLASSNAMES_FILE} names {len(names)} classes, the task has {expected}")
        return names

    def templates(self, expected: int | None) -> list[str]:
        """The T prompt templates.

        Raises UserError for one that does not take a class as `{c}`, or for another count than `expected`.
        """
        templates = self._lines(TEMPLATES_FILE)
        if expected not in (None, len(templates)):
            raise UserError(f"{self.path / TEMPLATES_FILE} holds {len(templates)} templates, the task has {expected}")
        for template in templates:
            try:
                usable = template.format(c="a") != template.format(c="b")
            except (LookupError, ValueError, AttributeError):
                usable = False
            if not usable:
                raise UserError(f"{self.path / TEMPLATES_FILE}: {template!r} should hold the class as {{c}}")
        return templates

    def fingerprint(self) -> str:
        """Hex sha256 over the text files, and over each shard's name, size, first and last MiB.

        Cheap for terabytes, exact for shards up to 2 MiB; it misses a change in the middle of a larger shard
        that keeps its length.
        """
        texts = _texts(self.path)
        return fingerprint(
            {
                "texts": [[str(path.relative_to(self.path)), sha256_file(path)] for path in texts],
                "shards": [
                    [str(path.relative_to(self.path)), path.stat().st_size, _edges_sha256(path)] for path in self.shards
                ],
            }
        )

    def refuse_changed(self) -> None:
        """Raises UserError that names a file which is not as it was when the folder was opened."""
        for path, before in self.opened.items():
            if not path.is_file() or _state(path) != before:
                raise UserError(f"{path} changed while it was read: run the same command again")

    def _lines(self, name: str) -> list[str]:
        path = self.path / name
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text: {error}") from error
        if not lines:
            raise UserError(f"{path} is empty")
        return lines


def open_task_folder(data: Path, name: str, task: Task) -> TaskFolder:
    """The folder of a task under `data`. Raises UserError when it, its shard count or a shard is missing."""
    path = task_path(data, name, task)
    if not path.is_dir():
        raise UserError(f"no folder {path}")
    shards = _tars(path / "test") if task.format == "webdataset" else _parquet_files(path)
    return TaskFolder(path, shards, {file: _state(file) for file in (*_texts(path), *shards)})


def _parquet_files(folder: Path) -> tuple[Path, ...]:
    found = sorted(file for file in folder.rglob("*.parquet") if not file.relative_to(folder).parts[0].startswith("."))
    if not found:
        raise UserError(f"no *.parquet in {folder}")
    return tuple(found)


def _texts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.txt")) + sorted((folder / "test").glob("*.txt"))


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _tars(folder: Path) -> tuple[Path, ...]:
    counter = folder / "nshards.txt"
    try:
        count = int(counter.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{counter} is missing: it holds the number of shards") from error
    except ValueError as error:
        raise UserError(f"{counter} should hold the number of shards: {error}") from error
    shards = tuple(folder / f"{number}.tar" for number in range(count))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing or not shards:
        raise UserError(f"{counter} says {count} shards; missing: {', '.join(missing) or 'all'}")
    return shards


def _edges_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        digest.update(stream.read(EDGE_BYTES))
        if path.stat().st_size > EDGE_BYTES:
            stream.seek(max(EDGE_BYTES, path.stat().st_size - EDGE_BYTES), os.SEEK_SET)
            digest.update(stream.read(EDGE_BYTES))
    return digest.hexdigest()
