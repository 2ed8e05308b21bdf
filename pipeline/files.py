"""Files that are either whole or absent, and digests of what they hold.

A reader never sees half a file: content goes to a temporary name in the same folder, is fsynced, and is
renamed over the target; the folder is fsynced too, so that the rename survives a power cut.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UserError


def free_bytes(path: Path) -> int:
    """Free on the file system that `path` is on, or will be on once it exists."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free


def fsync_folder(folder: Path) -> None:
    """Make renames and new entries in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_open(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary sibling of `path` for writing; on a clean exit it becomes `path`, else it is removed.

    The temporary name starts with a dot and carries the process id, so two writers never share one.
    Raises UserError that names the file when the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    encoding = None if "b" in mode else "utf-8"
    with full_disk_named(path):
        try:
            with open(temporary, mode, encoding=encoding) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            fsync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Raises UserError that names `path` where the disk is full while it is written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"no space left to write {path}: {free_bytes(path.parent) / 1e9:.2f} GB are free without it "
            f"({os.strerror(error.errno)}). Make room, then run the same command again."
        ) from error


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_open(path, "w") as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


def read_json(path: Path | str) -> Any:
    """Read one JSON document."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_object(path: Path | str, needs: Collection[str] = ()) -> dict[str, Any] | None:
    """Read one JSON object; None where there is no file, or not one that can be read or that has the keys it needs."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and value.keys() >= set(needs) else None


def sha256_file(path: Path | str) -> str:
    """Hex sha256 of a file's bytes, in constant memory."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Hex sha256 of a JSON-able value, independent of the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()
