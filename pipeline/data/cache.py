"""Shards of a network, kept on this machine: whole, proven, within a bound, shared by every process of the node.

    DIR/<sha256>.tar                the shard whose content has that digest
    DIR/<sha256>.<bytes>.partial    is being fetched; the name says what it will take
    DIR/locks/                      one process fetches a shard, the others wait for it

A shard gets its name once its size and sha256 are those of the manifest. Its time of modification is then set to one
that its digest gives: whoever writes to the file later breaks this seal, and it is fetched again instead of read.
Its time of access says when it was last read; what was not for the longest time goes first.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_prep.manifest import ShardFile
from pipeline.errors import UserError
from pipeline.files import sha256_file
from pipeline.locks import is_held, taking_turns
from pipeline.storage import download

STREAMS = 8  # shards that a process fetches at once
FETCHES = 2  # of a shard whose content is not what the manifest says


class ShardCache:
    """limit_bytes: of all shards together, those on their way included. The folder must be one of this machine.

    Raises UserError when the folder cannot be made.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"loader.cache: {folder} cannot be made ({error.strerror}): give another folder") from error

    def fetch(self, shards: Sequence[ShardFile]) -> None:
        """Fetch those of `shards` that are not here, several at a time. Raises as `read`."""
        missing = {shard.sha256: shard for shard in shards if not self._has(shard)}
        if missing:
            with ThreadPoolExecutor(STREAMS) as pool:
                list(pool.map(self._fetch, missing.values()))

    def read(self, shard: ShardFile, start: int, stop: int) -> bytes:
        """Bytes start to stop of a shard, which is fetched if it is not here.

        Raises FileNotFoundError when there is none, UserError when it cannot be fetched or kept.
        """
        while True:
            try:
                descriptor = os.open(self._path(shard), os.O_RDONLY)
            except FileNotFoundError:
                self._fetch(shard)  # here, or removed by another process since
                continue
            try:
                if _is_sealed(os.fstat(descriptor), shard):
                    os.utime(descriptor, ns=(time.time_ns(), _seal(shard)))
                    return os.pread(descriptor, stop - start, start)
            finally:
                os.close(descriptor)
            self._fetch(shard)

    def _has(self, shard: ShardFile) -> bool:
        try:
            return _is_sealed(self._path(shard).stat(), shard)
        except FileNotFoundError:
            return False

    def _path(self, shard: ShardFile) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _lock(self, sha256: str) -> Path:
        return self.folder / "locks" / sha256[:3]  # few files; two shards that share one take turns

    def _fetch(self, shard: ShardFile) -> None:
        path = self._path(shard)
        with taking_turns(self._lock(shard.sha256)):
            if self._has(shard):
                return  # another process was faster
            path.unlink(missing_ok=True)
            partial = path.with_suffix(f".{shard.bytes}.partial")
            self._make_room(partial, shard)
            try:
                self._download(shard, partial)
                os.utime(partial, ns=(time.time_ns(), _seal(shard)))
                if not _is_sealed(partial.stat(), shard):
                    raise UserError(f"loader.cache: {self.folder} does not keep times of files: choose a local disk")
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)

    def _download(self, shard: ShardFile, partial: Path) -> None:
        for _ in range(FETCHES):
            try:
                download(shard.path, partial)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise UserError(f"no space left at {self.folder}: lower loader.cache_gib, or make room") from error
            if partial.stat().st_size == shard.bytes and sha256_file(partial) == shard.sha256:
                with open(partial, "rb+") as stream:
                    os.fsync(stream.fileno())
                return
        raise UserError(
            f"{shard.path} is not what the manifest says (size, sha256), fetched {FETCHES} times: copy it there "
            "again, or run `data-prep verify NAME --again` and `data-prep manifest NAME`"
        )

    def _make_room(self, partial: Path, shard: ShardFile) -> None:
        """Create `partial`, which stands for its bytes, once the others leave room for them."""
        if shard.bytes > self.limit_bytes:
            raise UserError(f"loader.cache_gib is less than one shard ({shard.path}, {shard.bytes:,} bytes): raise it")
        while True:
            with taking_turns(self.folder / "locks" / "room"):
                if self._evict(self.limit_bytes - shard.bytes):
                    partial.touch()
                    return
            time.sleep(0.1)  # what others are fetching takes the room; done, it can be removed

    def _evict(self, limit: int) -> bool:
        """Remove abandoned files, then the shards read longest ago; whether what stays is within `limit` bytes."""
        held = 0
        for partial in self.folder.glob("*.partial"):
            sha256, size, _ = partial.name.split(".")
            if is_held(self._lock(sha256)):
                held += int(size)
            else:
                partial.unlink(missing_ok=True)
        shards = [(path, path.stat()) for path in self.folder.glob("*.tar")]
        held += sum(facts.st_size for _, facts in shards)
        for path, facts in sorted(shards, key=lambda entry: entry[1].st_atime_ns):
            if held <= limit:
                break
            path.unlink(missing_ok=True)
            held -= facts.st_size
        return held <= limit


def _seal(shard: ShardFile) -> int:
    """A time of modification, ns: some even second before 1988, so that every file system keeps it exactly."""
    return 2 * int(shard.sha256[:7], 16) * 10**9


def _is_sealed(facts: os.stat_result, shard: ShardFile) -> bool:
    return facts.st_size == shard.bytes and facts.st_mtime_ns == _seal(shard)
