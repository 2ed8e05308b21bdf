"""Files that are either whole or absent, files that grow by whole lines, and digests of what they hold.

A reader never sees half a file: content goes to a temporary name in the same folder, is fsynced, and is
renamed over the target; the folder is fsynced too, so that the rename survives a power cut.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UserError

_NO_JSON = (ValueError, RecursionError)


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

    The temporary name starts with a dot and ends at random: processes of two hosts may have the same number.
    Raises UserError that names the file when the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    # Names of files that are no text have half characters, which become \udcff: in JSON, that is what they are.
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
    with full_disk_named(path):
        try:
            with open(temporary, mode, encoding=encoding, errors=errors) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            fsync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def remove_torn(folder: Path, names: str = "*") -> None:
    """Remove what killed writers left in `folder` of files called `names` (a pattern).

    For whoever alone writes these: another one at work would lose its file.
    """
    for temporary in folder.glob(f".{names}.{8 * '?'}.tmp"):
        temporary.unlink(missing_ok=True)


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


def read_object(path: Path | str) -> dict[str, Any] | None:
    """Read one JSON object, of a YAML file one mapping; None where there is no file, or not one that can be read."""
    try:
        value = parse_yaml(Path(path).read_bytes()) if Path(path).suffix in (".yaml", ".yml") else read_json(path)
    except (OSError, *_NO_JSON):
        return None
    return value if isinstance(value, dict) else None


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON object as a line, durably; apart from what a kill left of the line before it.

    One process at a time may do this. Raises UserError that names the file when the disk is full; it then is as before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(value).encode() + b"\n"
    with full_disk_named(path), open(path, "a+b", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        torn = size > 0 and os.pread(stream.fileno(), 1, size - 1) != b"\n"
        content = b"\n" + line if torn else line
        if stream.write(content) < len(content):
            stream.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(stream.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines, none where there is no file; lines that a kill tore are passed over."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for line in content.splitlines():
        with suppress(*_NO_JSON):
            found.append(json.loads(line))
    return [value for value in found if isinstance(value, dict)]


def parse_yaml(text: str | bytes) -> Any:
    """Parse one YAML document. Raises ValueError where it is none."""
    import yaml

    try:
        in_c = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where yaml was built with it
        return yaml.load(text, in_c)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from error


def sha256_file(path: Path | str) -> str:
    """Hex sha256 of a file's bytes, in constant memory."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Hex sha256 of a JSON-able value, independent of the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()
