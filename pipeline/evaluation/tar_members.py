"""Files of a tar, one after the other: what tarfile gives, for a fifth of its time where headers are plain."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import IO

_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_NO_SAMPLE = re.compile(r"_{2,3}$|__[^/]*__($|/)")  # what webdataset takes for a description of the shard
_CHECKSUM = slice(148, 156)


def tar_members(stream: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every regular file, in their order.

    Raises what tarfile raises where the tar is torn, or is none.
    """
    for name, content in _members(stream):
        if not (name.startswith("__") and _NO_SAMPLE.match(name)):
            yield name, content


def _members(stream: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    while True:
        start = stream.tell()
        header = stream.read(tarfile.BLOCKSIZE)
        if start > 0 and not any(header):  # an end, marked or not
            return
        plain = _plain(header)
        if plain is None:  # a long name, a folder, a compressed tar, a torn one: from here on it is tarfile's
            stream.seek(start)
            yield from _by_tarfile(stream)
            return
        name, size = plain
        content, padding = stream.read(size), -size % tarfile.BLOCKSIZE
        if len(content) + len(stream.read(padding)) < size + padding:
            raise tarfile.ReadError("unexpected end of data")
        yield name, content


def _plain(header: bytes) -> tuple[str, int] | None:
    """Name and size of a regular file, as in the standard of 1988; None for every other header."""
    if len(header) < tarfile.BLOCKSIZE or header[156:157] not in _REGULAR:
        return None
    try:
        size, checksum = (int(header[field].rstrip(b"\0 "), 8) for field in (slice(124, 136), _CHECKSUM))
    except ValueError:  # a size that does not fit is written otherwise
        return None
    if sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ") != checksum:
        return None
    name, prefix = (_text(header[field]) for field in (slice(0, 100), slice(345, 500)))
    if name.endswith("/"):  # how the oldest tars mark folders
        return None
    return f"{prefix}/{name}" if prefix else name, size


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _by_tarfile(stream: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            if member.isreg():
                content = tar.extractfile(member)
                assert content is not None
                yield member.name, content.read()
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
