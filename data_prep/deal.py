"""Deal rows to work items, each row once, in bounded memory.

A row goes to the item that its uid names, and an item's rows are sorted by uid: the result is a function of the set
of rows. Rows are screened and scattered into a spill by the first key that tells them apart, from spill to spill for
every further key, and gathered from the last one, whose order is that of the items.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.corpus import CorpusDefinition
from data_prep.outcomes import tally
from data_prep.progress import Report
from data_prep.rows import ROW_SCHEMA, hashed, own_uids, to_hex
from data_prep.screen import IMAGE, UID, Screen
from data_prep.spill import Key, Spill, read_spills
from data_prep.tables import MetadataFile
from pipeline.files import atomic_open, sha256_file

RANGE_ROWS, RANGE_BYTES = 1 << 19, 64 << 20  # of the metadata, per range of a spill
_GROUP_ROWS = 1 << 17  # of an item's Parquet file


@dataclass(frozen=True)
class Scattered:
    """What became of the rows that were read: how many, and how many were dropped for which reason."""

    rows_read: int
    dropped: dict[str, int]


def open_files(paths: Sequence[Path], screen: Screen, definition: CorpusDefinition) -> list[MetadataFile]:
    """Every metadata file, known to have the columns. Raises UserError for one that has not."""
    return [MetadataFile(path, screen.wanted, definition.header) for path in paths]


def ranges_for(files: Sequence[MetadataFile]) -> int:
    """In how many ranges the rows of these files are spilled, so that each fits in memory several times over."""
    rows, size = sum(file.rows for file in files), sum(os.path.getsize(file.path) for file in files)
    return 1 + max(rows // RANGE_ROWS, size // RANGE_BYTES)


def keys_of(definition: CorpusDefinition, tasks: int) -> list[Key]:
    """What tells rows apart, in the order in which it is applied; the last is the uid."""
    keys = []
    if "url" in definition.screen.distinct:
        keys.append(Key("duplicate_url", lambda rows: hashed(rows["url"].cast(pa.large_binary()).to_pylist())))
    if definition.columns.image_hash is not None:
        keys.append(Key("duplicate_image", lambda rows: _halves(rows, IMAGE)))
    if "url_caption" in definition.screen.distinct and definition.columns.uid is not None:  # else the uid is its hash
        keys.append(Key("duplicate_url_caption", _url_and_caption))
    return [*keys, Key("duplicate", lambda rows: _halves(rows, UID), tasks)]


def scatter(
    files: Sequence[MetadataFile], screen: Screen, spill: Spill, report: Report, part: int = 0, parts: int = 1
) -> Scattered:
    """Screen the rows and put the kept ones into a spill, which is flushed. Of `parts` equal shares only one is read.

    report: called with (rows read, rows in all, as far as known).
    """
    total, rows_read, dropped, piece = sum(file.rows for file in files) // parts, 0, Counter[str](), 0
    for file in files:
        mine = [number for number in range(file.pieces) if (piece + number) % parts == part]
        piece += file.pieces
        for batch in file.batches(mine):
            screened = screen(batch.rows)
            spill.add(screened.rows)
            dropped.update(screened.dropped())
            dropped["malformed"] += len(batch.malformed)
            rows_read += batch.rows.num_rows + len(batch.malformed)
            report(rows_read, max(total, rows_read))
    spill.flush()
    dropped[spill.key.reason] += spill.duplicates
    return Scattered(rows_read, tally(+dropped))


def gather(
    folders: Sequence[Path], keys: Sequence[Key], ranges: int, *, captions: Sequence[str], scratch: Path, target: Path
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Write `target/plan/<item>.parquet` (ROW_SCHEMA and the further captions) for every work item.

    folders: spills by the first of `keys`. scratch: a folder for further ones.
    Returns the rows dropped by reason, and the items {item, path, rows, sha256}.
    """
    dropped = Counter[str]()

    def read(folders: Sequence[Path], key: Key) -> Iterator[pa.Table]:
        for rows, duplicates in read_spills(folders, key, ranges):
            dropped[key.reason] += duplicates
            yield rows

    for key, following in pairwise(keys):
        spill = Spill(scratch / following.reason, following, ranges)
        for rows in read(folders, key):
            spill.add(rows)
        spill.flush()
        dropped[following.reason] += spill.duplicates
        folders = [spill.folder]
    items = list(_write_items(read(folders, keys[-1]), keys[-1], captions, target))
    return tally(+dropped), items


def _write_items(
    tables: Iterator[pa.Table], key: Key, captions: Sequence[str], target: Path
) -> Iterator[dict[str, Any]]:
    schema = pa.schema([*ROW_SCHEMA, *(pa.field(name, pa.string()) for name in captions)])
    by_item = groupby(_slices(tables, key), key=lambda entry: entry[0])
    item, rows = next(by_item, (key.tasks, iter(())))
    for number in range(key.tasks):
        path = target / "plan" / f"{number:05d}.parquet"
        found = (table for _, table in rows) if number == item else iter(())
        written = _write_item(path, found, schema)
        yield {"item": number, "path": str(path.relative_to(target)), "rows": written, "sha256": sha256_file(path)}
        if number == item:
            item, rows = next(by_item, (key.tasks, iter(())))


def _slices(tables: Iterator[pa.Table], key: Key) -> Iterator[tuple[int, pa.Table]]:
    """(work item, its rows), as they come in order."""
    for table in tables:
        items = key.items(key.of(table))
        borders = [0, *(np.flatnonzero(np.diff(items)) + 1), len(items)]
        for start, stop in pairwise(borders):
            if stop > start:
                yield int(items[start]), table.slice(start, stop - start)


def _write_item(path: Path, tables: Iterator[pa.Table], schema: pa.Schema) -> int:
    """In row groups of fixed size, so that the file does not tell in which pieces its rows came."""
    written, waiting = 0, schema.empty_table()
    with (
        atomic_open(path) as stream,
        pq.ParquetWriter(stream, schema, compression="zstd", use_dictionary=False) as writer,
    ):
        for table in tables:
            waiting = pa.concat_tables([waiting, _as_planned(table, schema)])
            while waiting.num_rows >= _GROUP_ROWS:
                writer.write_table(waiting.slice(0, _GROUP_ROWS))
                waiting = waiting.slice(_GROUP_ROWS)
            written += table.num_rows
        writer.write_table(waiting)
    return written


def _as_planned(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    uids = to_hex(_halves(rows, UID))
    columns = [uids, *(rows[name].cast(pa.string()) for name in schema.names[1:])]
    return pa.Table.from_arrays(columns, schema=schema)


def _halves(rows: pa.Table, names: tuple[str, str]) -> np.ndarray:
    return np.stack([rows[name].to_numpy() for name in names], axis=1)


def _url_and_caption(rows: pa.Table) -> np.ndarray:
    return own_uids(rows["url"], rows["caption"])
