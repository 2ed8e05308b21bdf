"""Bytes of any sample of the corpora, by sample index or by (shard, row): from disk, a network, or a local copy."""

from __future__ import annotations

import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.manifest import Manifest, ShardFile
from data_prep.shard import StoredSample, index_name, read_index, sample_range
from pipeline.data.cache import ShardCache
from pipeline.errors import UserError
from pipeline.storage import Range, is_url, read_bytes, read_ranges

OPEN_SHARDS = 256  # indices, and file descriptors, held per process


@dataclass
class _OpenShard:
    file: ShardFile
    index: np.ndarray
    descriptor: int | None  # None where the shard is at a URL


class ShardReader:
    """Random access to the samples of several manifests, whose shards are numbered on from one to the next.

    samples, first_sample_index: (S,) int64 over all shards. One per process: descriptors are not shared by pickling.
    """

    def __init__(self, manifests: Sequence[Manifest], cache: ShardCache | None = None) -> None:
        self.manifests = list(manifests)
        self.cache = cache
        self.samples = np.concatenate([manifest.samples for manifest in manifests])
        self.first_sample_index = np.cumsum(self.samples) - self.samples
        self.first_shard = np.cumsum([0, *(len(manifest.samples) for manifest in manifests)])[:-1]
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}

    def shard(self, shard: int) -> ShardFile:
        """What the manifest says of a shard."""
        manifest = int(np.searchsorted(self.first_shard, shard, side="right")) - 1
        return self.manifests[manifest].shard(shard - int(self.first_shard[manifest]))

    def sample_index(self, shard: int, row: int) -> int:
        """The sample's stable number among those of all corpora."""
        return int(self.first_sample_index[shard]) + row

    def locate(self, sample_index: int) -> tuple[int, int]:
        """(shard, row) of a sample index: the inverse of `sample_index`."""
        shard = int(np.searchsorted(self.first_sample_index, sample_index, side="right")) - 1
        return shard, sample_index - int(self.first_sample_index[shard])

    def read(self, places: Sequence[tuple[int, int]]) -> list[StoredSample]:
        """The samples at (shard, row); those of one network at once.

        Raises UserError when a shard is missing, or is not what its manifest says.
        """
        try:
            return self._read(places)
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename} is missing, though the manifest lists its shard: "
                "restore it, or run `data-prep verify NAME --again` and `data-prep manifest NAME`"
            ) from error

    def _read(self, places: Sequence[tuple[int, int]]) -> list[StoredSample]:
        entries: list[np.void] = []
        ranges: list[Range] = []
        contents: dict[int, bytes] = {}
        for number, (shard, row) in enumerate(places):
            opened = self._shard(shard)
            start, stop = sample_range(opened.index, row, opened.file.bytes)
            entries.append(opened.index[row])
            ranges.append(Range(opened.file.path, start, stop))
            if opened.descriptor is not None:
                contents[number] = os.pread(opened.descriptor, stop - start, start)
            elif self.cache is not None:
                contents[number] = self.cache.read(opened.file, start, stop)
        if remote := [number for number in range(len(places)) if number not in contents]:
            contents.update(zip(remote, read_ranges([ranges[number] for number in remote]), strict=True))
        for number, (url, start, stop) in enumerate(ranges):
            if len(contents[number]) != stop - start:
                raise _damaged(url, f"gave {len(contents[number])} bytes where {stop - start} should be")
        return [StoredSample(contents[number], entry) for number, entry in enumerate(entries)]

    def _shard(self, shard: int) -> _OpenShard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        file = self.shard(shard)
        opened = _open_url(file) if is_url(file.path) else _open_file(file)
        if len(opened.index) != file.samples:
            raise _damaged(index_name(file.path), f"lists {len(opened.index)} samples, the manifest {file.samples}")
        if len(self._open) >= OPEN_SHARDS:
            _, oldest = self._open.popitem(last=False)
            if oldest.descriptor is not None:
                os.close(oldest.descriptor)
        self._open[shard] = opened
        return opened


def _open_file(file: ShardFile) -> _OpenShard:
    return _OpenShard(file, read_index(file.path), os.open(file.path, os.O_RDONLY))


def _open_url(file: ShardFile) -> _OpenShard:
    content = read_bytes(index_name(file.path))
    if hashlib.sha256(content).hexdigest() != file.index_sha256:
        raise _damaged(index_name(file.path), "is not what the manifest says (sha256)")
    return _OpenShard(file, np.load(io.BytesIO(content)), None)


def _damaged(path: str, problem: str) -> UserError:
    return UserError(
        f"{path} {problem}: copy it again, or run `data-prep verify NAME --again` and `data-prep manifest NAME`"
    )
