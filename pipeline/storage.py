"""Bytes at a path or at an fsspec URL (s3://, gs://, https://, memory://), with patience for networks.

Credentials and endpoints come from the environment or fsspec's own configuration. File systems are asked for anew at
every call: fsspec keeps them, and drops what a forked process inherited.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
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
    """Many pieces of files at URLs, those of one network requested at once; one past the end comes short.

    Raises FileNotFoundError, and UserError when a network fails for good.
    """
    contents = [b""] * len(ranges)
    for scheme in {_scheme(part.url) for part in ranges}:
        chosen = [number for number, part in enumerate(ranges) if _scheme(part.url) == scheme]
        found = _patiently(ranges[chosen[0]].url, _ReadRanges([ranges[number] for number in chosen]))
        for number, content in zip(chosen, found, strict=True):
            contents[number] = content
    return contents


def download(url: str, target: Path) -> None:
    """Copy a file here. Raises FileNotFoundError, OSError when the disk is full, UserError when a network fails."""
    _patiently(url, lambda files, name: files.get_file(name, str(target)))


def _patiently(url: str, action: Callable[[Any, str], T]) -> T:
    """action(file system, name within it), again after a wait where trying again may help."""
    import fsspec  # half a second, and most runs read files of their own machine

    for attempt in range(ATTEMPTS):
        try:
            return action(*fsspec.url_to_fs(url))
        except FileNotFoundError as error:  # whose text, in most libraries, does not say which
            raise FileNotFoundError(errno.ENOENT, "no such file", error.filename or url) from error
        except (ImportError, PermissionError, ValueError) as error:  # no such kind of URL, or it is not ours to read
            raise UserError(f"{url} cannot be read: {_said(error)}. Mend the URL, credentials or endpoint.") from error
        except Exception as error:  # each library below has its own
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            if attempt == ATTEMPTS - 1:
                raise UserError(
                    f"{url} cannot be read, tried {ATTEMPTS} times: {_said(error)}. Check the network, the endpoint "
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


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
