"""Bytes at a path or at an fsspec URL (s3://, gs://, https://, memory://), with patience for networks.

Credentials and endpoints come from the environment or fsspec's own configuration. File systems are asked for anew at
every call: fsspec keeps them, and drops what a forked process inherited.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipeline.errors import UserError

ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.5  # doubled after each attempt; the libraries below wait and retry within each
T = TypeVar("T")


class Range(NamedTuple):
    """Bytes start to stop of a file, stop excluded; without either, all of it."""

    url: str
    start: int | None = None
    stop: int | None = None


def is_url(path: str | Path) -> bool:
    """Whether fsspec reads it; anything else is a path of this machine."""
    return "://" in str(path)


def join(folder: str, name: str) -> str:
    """The file `name` in a folder, path or URL."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def read_bytes(path: str) -> bytes:
    """A whole file. Raises FileNotFoundError, and UserError when a network fails for good."""
    if not is_url(path):
        return Path(path).read_bytes()
    return read_ranges([Range(path)])[0]


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    """Many pieces of files, those of one network requested at once; one past the end comes short.

    Raises FileNotFoundError, and UserError when a network fails for good.
    """
    contents = [b""] * len(ranges)
    groups: dict[str, list[int]] = {}
    for number, part in enumerate(ranges):
        groups.setdefault(_scheme(part.url) if is_url(part.url) else part.url, []).append(number)
    for chosen in groups.values():
        some = [ranges[number] for number in chosen]
        found = _patiently(some[0].url, _ReadRanges(some)) if is_url(some[0].url) else _read_here(some)
        for number, content in zip(chosen, found, strict=True):
            contents[number] = content
    return contents


def upload(source: Path, url: str) -> None:
    """Copy a file to a URL, where it appears once it is whole. Raises UserError when the network fails for good."""
    _patiently(url, lambda files, name: files.put_file(str(source), name), "written")


def sizes(folder: str) -> dict[str, int]:
    """Name in the folder to bytes, of every file at and below a URL; empty where there is none."""

    def find(files: Any, name: str) -> dict[str, int]:
        files.invalidate_cache()
        found = files.find(name, detail=True)
        return {path.removeprefix(name).lstrip("/"): int(entry["size"]) for path, entry in found.items()}

    try:
        return _patiently(folder.rstrip("/"), find)
    except FileNotFoundError:
        return {}


def matching(pattern: str) -> list[str]:
    """The URLs that a URL with wildcards stands for, in order; one without is taken at its word."""
    if not any(character in pattern for character in "*?["):
        return [pattern]
    return sorted(_patiently(pattern, lambda files, name: [files.unstrip_protocol(path) for path in files.glob(name)]))


def download(url: str, target: Path) -> None:
    """Copy a file here. Raises FileNotFoundError, OSError when the disk is full, UserError when a network fails."""
    _patiently(url, lambda files, name: files.get_file(name, str(target)))


def _patiently(url: str, action: Callable[[Any, str], T], verb: str = "read") -> T:
    """action(file system, name within it), again after a wait where trying again may help."""
    import fsspec  # half a second, and most runs read files of their own machine

    for attempt in range(ATTEMPTS):
        try:
            return action(*fsspec.url_to_fs(url))
        except FileNotFoundError as error:  # whose text, in most libraries, does not say which
            raise FileNotFoundError(errno.ENOENT, "no such file", error.filename or url) from error
        except (ImportError, PermissionError, ValueError) as error:  # no such kind of URL, or it is not ours to read
            raise UserError(
                f"{url} cannot be {verb}: {_said(error)}. Mend the URL, credentials or endpoint."
            ) from error
        except Exception as error:  # each library below has its own
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            if attempt == ATTEMPTS - 1:
                raise UserError(
                    f"{url} cannot be {verb}, tried {ATTEMPTS} times: {_said(error)}. Check the network, the endpoint "
                    "and the credentials, then run the same command again: it goes on at the last checkpoint."
                ) from error
            time.sleep(FIRST_WAIT_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


class _ReadRanges:
    """All pieces at once; at another attempt, those that are still wanted."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._wanted = dict(enumerate(ranges))
        self._found: dict[int, bytes] = {}

    def __call__(self, files: Any, _: str) -> list[bytes]:
        urls, starts, stops = (list(column) for column in zip(*self._wanted.values(), strict=True))
        answers = files.cat_ranges(urls, starts, stops, on_error="return")
        for number, answer in zip(list(self._wanted), answers, strict=True):
            if isinstance(answer, bytes):
                self._found[number] = answer
                del self._wanted[number]
        for url, answer in zip(urls, answers, strict=True):
            if isinstance(answer, FileNotFoundError):
                raise FileNotFoundError(errno.ENOENT, "no such file", url) from answer
            if isinstance(answer, BaseException):
                raise answer
        return [self._found[number] for number in sorted(self._found)]


def _read_here(ranges: Sequence[Range]) -> Iterator[bytes]:
    """Pieces of one file of this machine."""
    with open(ranges[0].url, "rb") as stream:
        for part in ranges:
            start = part.start or 0
            stream.seek(start)
            yield stream.read(-1 if part.stop is None else part.stop - start)


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
