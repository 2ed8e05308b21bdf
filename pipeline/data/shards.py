"""Bytes of any sample of the corpora, by sample index or by (shard, row): from disk, a network, or a local copy."""

from __future__ import annotations

import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.manifest import Manifest, ShardFile
from data_prep.shard import StoredSample, index_name, read_index, sample_range
from pipeline.data.cache import ShardCache
from pipeline.errors import UserError
from pipeline.storage import Range, is_url, read_ranges

OPEN_SHARDS = 256  # indices, and file descriptors, held per process
Place = tuple[int, int]  # shard, row


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

    def locate(self, sample_index: int) -> Place:
        """(shard, row) of a sample index: the inverse of `sample_index`."""
        shard = int(np.searchsorted(self.first_sample_index, sample_index, side="right")) - 1
        return shard, sample_index - int(self.first_sample_index[shard])

    def read(self, places: Sequence[Place], keep: bool = True) -> list[StoredSample]:
        """The samples at `places`; what comes from a network is requested at once.

        keep: read remote shards by way of the cache, where there is one; not for a few samples of many shards.
        Raises UserError when a shard is missing, or is not what its manifest says.
        """
        samples: list[StoredSample] = []
        try:
            for start in range(0, len(places), OPEN_SHARDS):
                samples += self._read(places[start : start + OPEN_SHARDS], self.cache if keep else None)
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename} is missing, though the manifest lists its shard: "
                "restore it, or run `data-prep verify NAME --again` and `data-prep manifest NAME`"
            ) from error
        return samples

    def fetch_ahead(self, shards: Sequence[int]) -> None:
        """Say which shards will be read soon: with a cache, those at URLs are fetched meanwhile."""
        if self.cache is not None:
            files = [self.shard(shard) for shard in dict.fromkeys(shards)]
            self.cache.fetch_ahead([file for file in files if is_url(file.path)])

    def _read(self, places: Sequence[Place], cache: ShardCache | None) -> list[StoredSample]:
        shards = self._opened([shard for shard, _ in places])
        if cache is not None:
            cache.fetch([shard.file for shard in shards if shard.descriptor is None])
        spans = [
            sample_range(shard.index, row, shard.file.bytes) for shard, (_, row) in zip(shards, places, strict=True)
        ]
        contents: dict[int, bytes] = {}
        remote: dict[int, Range] = {}
        for number, (shard, (start, stop)) in enumerate(zip(shards, spans, strict=True)):
            if shard.descriptor is not None:
                contents[number] = os.pread(shard.descriptor, stop - start, start)
            elif cache is not None:
                contents[number] = cache.read(shard.file, start, stop)
            else:
                remote[number] = Range(shard.file.path, start, stop)
        contents.update(zip(remote, read_ranges(list(remote.values())), strict=True))
        for number, (start, stop) in enumerate(spans):
            if len(contents[number]) != stop - start:
                problem = f"gave {len(contents[number])} bytes where {stop - start} should be"
                raise _damaged(shards[number].file.path, problem)
        return [StoredSample(contents[n], shards[n].index[row]) for n, (_, row) in enumerate(places)]

    def _opened(self, numbers: Sequence[int]) -> list[_OpenShard]:
        """At most OPEN_SHARDS of them."""
        for number, opened in _open([(n, self.shard(n)) for n in dict.fromkeys(numbers) if n not in self._open]):
            if len(opened.index) != opened.file.samples:
                problem = f"lists {len(opened.index)} samples, the manifest {opened.file.samples}"
                raise _damaged(index_name(opened.file.path), problem)
            self._open[number] = opened
        for number in numbers:
            self._open.move_to_end(number)
        while len(self._open) > OPEN_SHARDS:
            _, oldest = self._open.popitem(last=False)
            if oldest.descriptor is not None:
                os.close(oldest.descriptor)
        return [self._open[number] for number in numbers]


def _open(wanted: Sequence[tuple[int, ShardFile]]) -> Iterator[tuple[int, _OpenShard]]:
    """Shards by number, with their indices; the indices of a network are requested at once."""
    remote = [(number, file) for number, file in wanted if is_url(file.path)]
    contents = read_ranges([Range(index_name(file.path)) for _, file in remote])
    for (number, file), content in zip(remote, contents, strict=True):
        yield number, _OpenShard(file, _index(file, content), None)
    for number, file in wanted:
        if not is_url(file.path):
            yield number, _OpenShard(file, read_index(file.path), os.open(file.path, os.O_RDONLY))


def _index(file: ShardFile, content: bytes) -> np.ndarray:
    if hashlib.sha256(content).hexdigest() != file.index_sha256:
        raise _damaged(index_name(file.path), "is not what the manifest says (sha256)")
    return np.load(io.BytesIO(content), allow_pickle=False)


def _damaged(path: str, problem: str) -> UserError:
    return UserError(
        f"{path} {problem}: copy it again, or run `data-prep verify NAME --again` and `data-prep manifest NAME`"
    )
