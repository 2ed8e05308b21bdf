"""Rows on disk, sorted far enough that a range of them fits in memory.

Every row has a place on a line (`Key`), which is cut into as many ranges as wanted. Rows are collected into runs of
bounded size, each an Arrow file with one batch per range; reading takes one range from all runs at a time. Rows with
equal keys lie in one range, where all but the least of them are dropped, and before that within each run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.files import full_disk_named

RUN_ROWS, RUN_BYTES = 1 << 20, 256 << 20  # a run's size in memory, whichever comes first
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True)
class Key:
    """What tells rows apart, and in what order they lie.

    of: 128 bits per row, uint64 [rows, 2], spread evenly (hashes). tasks: work items, the coarser order; 1 for none.
    reason: why rows with the same key are dropped.
    """

    reason: str
    of: Callable[[pa.Table], np.ndarray]
    tasks: int = 1

    def items(self, keys: np.ndarray) -> np.ndarray:
        """The work item of each, uint64 [rows]: `rows.work_item` where keys are uids."""
        return keys[:, 1] % np.uint64(self.tasks)

    def order(self, keys: np.ndarray) -> np.ndarray:
        """Positions of the keys in order of (item, key)."""
        item_bits = np.uint64((self.tasks - 1).bit_length())
        leading = (self.items(keys) << (np.uint64(63) - item_bits)) | (keys[:, 0] >> (item_bits + np.uint64(1)))
        order = np.argsort(leading)  # ten times as fast as by all 128 bits, which hardly ever matter
        near = leading[order[1:]] == leading[order[:-1]]
        if (near & (keys[order[1:]] != keys[order[:-1]]).any(axis=1)).any():
            order = np.lexsort((keys[:, 1], keys[:, 0], self.items(keys)))
        return order

    def ranges(self, keys: np.ndarray, number: int) -> np.ndarray:
        """Which of `number` equal ranges of the line each key lies in: lines of 2**32 places per item, end to end."""
        places = (self.items(keys) << np.uint64(32)) | (keys[:, 0] >> np.uint64(32))
        return places * np.uint64(number) // np.uint64(self.tasks << 32)


def distinct(rows: pa.Table, key: Key) -> tuple[pa.Table, np.ndarray, int]:
    """Rows in order of (work item, key), of equal keys the least row; their keys; how many were dropped."""
    if not rows.num_rows:
        return rows, np.empty((0, 2), np.uint64), 0
    keys = key.of(rows)
    order = key.order(keys)
    again = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    if again.any():
        first = np.r_[True, ~again]
        group = np.cumsum(first) - 1
        repeated = np.r_[again, False] | ~first
        least = _least(rows.take(pa.array(order[repeated])), group[repeated])
        winners = order[repeated][least]
        repeated_groups = np.unique(group[repeated])
        order = order[first]
        order[repeated_groups] = winners
    return rows.take(pa.array(order)), keys[order], int(again.sum())


def _least(rows: pa.Table, group: np.ndarray) -> np.ndarray:
    """For every group, in order, the position of its least row; columns are compared from the left."""
    by = [(name, "ascending") for name in ("group", *rows.column_names)]
    ranked = pc.sort_indices(rows.append_column("group", pa.array(group)), by).to_numpy()
    return ranked[np.r_[True, np.diff(group[ranked]) > 0]]


class Spill:
    """Takes rows in any order and quantity, and writes them into a folder of its own as runs.

    duplicates: rows dropped so far. Raises UserError when the disk is full.
    """

    def __init__(self, folder: Path, key: Key, ranges: int) -> None:
        folder.mkdir(parents=True)
        self.folder, self.duplicates = folder, 0
        self.key, self._ranges = key, ranges
        self._rows: list[pa.Table] = []
        self._runs = 0

    def add(self, rows: pa.Table) -> None:
        self._rows.append(rows)
        waiting = sum(table.num_rows for table in self._rows)
        if waiting >= RUN_ROWS or sum(table.nbytes for table in self._rows) >= RUN_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is still in memory."""
        if not self._rows:
            return
        rows, keys, duplicates = distinct(pa.concat_tables(self._rows), self.key)
        self._rows = []
        self.duplicates += duplicates
        bounds = np.searchsorted(self.key.ranges(keys, self._ranges), np.arange(self._ranges + 1))
        path = self.folder / f"{self._runs:06d}.arrow"
        self._runs += 1
        with full_disk_named(path), pa.ipc.new_file(str(path), rows.schema, options=_OPTIONS) as writer:
            for start, stop in pairwise(bounds):
                writer.write(_one_batch(rows.slice(start, stop - start)))


def read_spills(folders: Sequence[Path], key: Key, ranges: int) -> Iterator[tuple[pa.Table, int]]:
    """What spills with the same key and ranges hold, in order: the rows of a range, and how many it had too many."""
    runs = [run for folder in folders for run in sorted(folder.glob("*.arrow"))]
    for number in range(ranges if runs else 0):
        rows, _, duplicates = distinct(pa.Table.from_batches([_batch(run, number) for run in runs]), key)
        yield rows, duplicates


def _one_batch(rows: pa.Table) -> pa.RecordBatch:
    batches = rows.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema)


def _batch(run: Path, number: int) -> pa.RecordBatch:
    with pa.OSFile(str(run)) as stream, pa.ipc.open_file(stream) as reader:
        return reader.get_batch(number)
