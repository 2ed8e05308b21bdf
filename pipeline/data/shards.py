"""Bytes of any sample of a corpus, by sample index or by (shard, row)."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from data_prep.manifest import Manifest
from data_prep.shard import read_at, read_index
from pipeline.errors import UserError

OPEN_SHARDS = 128  # file descriptors held per process


@dataclass
class _OpenShard:
    descriptor: int
    index: np.ndarray


class ShardReader:
    """Random access to the samples of a manifest. One per process: descriptors are not shared by pickling."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {"manifest": self.manifest, "_open": OrderedDict()}

    def read(self, shard: int, row: int) -> tuple[bytes, str]:
        """Image file bytes and caption of one sample. Raises OSError when the shard is shorter than its index says."""
        opened = self._shard(shard)
        entry = opened.index[row]
        image = read_at(opened.descriptor, int(entry["image_offset"]), int(entry["image_bytes"]))
        text = read_at(opened.descriptor, int(entry["text_offset"]), int(entry["text_bytes"]))
        return image, text.decode()

    def sample_index(self, shard: int, row: int) -> int:
        """The sample's stable number in the corpus."""
        return int(self.manifest.first_sample_index[shard]) + row

    def locate(self, sample_index: int) -> tuple[int, int]:
        """(shard, row) of a sample index: the inverse of `sample_index`."""
        shard = int(np.searchsorted(self.manifest.first_sample_index, sample_index, side="right")) - 1
        return shard, sample_index - int(self.manifest.first_sample_index[shard])

    def _shard(self, shard: int) -> _OpenShard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        path = self.manifest.shard_path(shard)
        try:
            opened = _OpenShard(os.open(path, os.O_RDONLY), read_index(path))
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename} is missing, though the manifest lists {path.name}: "
                "restore it, or run `data-prep verify NAME --again` and `data-prep manifest NAME`"
            ) from error
        if len(self._open) >= OPEN_SHARDS:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest.descriptor)
        self._open[shard] = opened
        return opened
