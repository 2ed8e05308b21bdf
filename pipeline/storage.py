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
    """Bytes start to stop of a file, stop excluded."""

    url: str
    start: int
    stop: int


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
    return _patiently(path, lambda files, name: files.cat_file(name))


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    """Many pieces of files at URLs, those of one network requested at once; one past the end comes short.

    Raises FileNotFoundError, and UserError when a network fails for good.
    """
    contents = [b""] * len(ranges)
    for scheme in {part.url.partition("://")[0] for part in ranges}:
        chosen = [n for n, part in enumerate(ranges) if part.url.startswith(f"{scheme}://")]
        urls, starts, stops = (list(column) for column in zip(*(ranges[n] for n in chosen), strict=True))
        found = _patiently(urls[0], lambda files, _: files.cat_ranges(urls, starts, stops, on_error="raise"))  # noqa: B023
        for n, content in zip(chosen, found, strict=True):
            contents[n] = content
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
        except FileNotFoundError:
            raise
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


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
