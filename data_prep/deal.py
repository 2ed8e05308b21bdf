"""Deal rows to work items in bounded memory.

A row goes to the item that its uid names, and an item's rows are sorted by uid: the result is a function of
the set of rows. Rows stream through a bucket file per few items, so memory holds one bucket at a time, and
duplicates, which share a uid, always meet in it.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.corpus import Columns
from data_prep.outcomes import tally
from data_prep.progress import Report
from data_prep.rows import ROW_SCHEMA, Row, count_rows, read_rows, work_item
from pipeline.files import atomic_open, sha256_file

MAX_BUCKETS = 128  # files open at once
_BUCKET_SCHEMA = pa.schema(  # large_string: a bucket may hold more than 2 GiB of text
    [
        ("item", pa.int32()),
        ("uid", pa.large_string()),
        ("url", pa.large_string()),
        ("caption", pa.large_string()),
    ]
)


def deal(
    metadata: list[Path],
    columns: Columns,
    tasks: int,
    *,
    scratch: Path,
    target: Path,
    report: Report,
) -> tuple[int, dict[str, int], list[dict[str, Any]]]:
    """Write `target/plan/<item>.parquet` (ROW_SCHEMA) for every work item.

    scratch: an empty folder for the buckets. report: called with (rows read, rows in all).
    Returns the rows read, the rows dropped by reason, and the items {item, path, rows, sha256}.
    """
    rows_read, dropped = _fill_buckets(metadata, columns, tasks, scratch, report)
    items = []
    for bucket in range(min(tasks, MAX_BUCKETS)):
        table, duplicates = _without_duplicates(_read_bucket(scratch, bucket))
        dropped["duplicate"] += duplicates
        for item in range(bucket, tasks, MAX_BUCKETS):
            rows = table.filter(pc.field("item") == item).select(ROW_SCHEMA.names).cast(ROW_SCHEMA)
            path = target / "plan" / f"{item:05d}.parquet"
            with atomic_open(path) as stream:
                pq.write_table(rows, stream, compression="zstd")
            entry = {
                "path": str(path.relative_to(target)),
                "rows": rows.num_rows,
                "sha256": sha256_file(path),
            }
            items.append({"item": item, **entry})
    return rows_read, tally(+dropped), sorted(items, key=lambda entry: entry["item"])


def _fill_buckets(
    metadata: list[Path], columns: Columns, tasks: int, scratch: Path, report: Report
) -> tuple[int, Counter[str]]:
    total = sum(count_rows(path) for path in metadata)
    rows_read, dropped = 0, Counter[str]()
    with ExitStack() as stack:
        buckets = [
            stack.enter_context(pa.ipc.new_stream(str(_bucket(scratch, bucket)), _BUCKET_SCHEMA))
            for bucket in range(min(tasks, MAX_BUCKETS))
        ]
        for path in metadata:
            for batch in read_rows(path, columns):
                dealt: dict[int, list[tuple[int, str, str, str]]] = {}
                for row in batch:
                    if isinstance(row, Row):
                        item = work_item(row.uid, tasks)
                        dealt.setdefault(item % MAX_BUCKETS, []).append((item, *row))
                    else:
                        dropped[row] += 1
                for bucket, rows in dealt.items():
                    values = zip(*rows, strict=True)
                    arrays = [
                        pa.array(column, field.type) for column, field in zip(values, _BUCKET_SCHEMA, strict=True)
                    ]
                    buckets[bucket].write_batch(pa.record_batch(arrays, schema=_BUCKET_SCHEMA))
                rows_read += len(batch)
                report(rows_read, total)
    return rows_read, dropped


def _without_duplicates(table: pa.Table) -> tuple[pa.Table, int]:
    """Sorted by uid, each uid once (of equal uids the least URL and caption, whatever the input's order)."""
    table = table.sort_by([(name, "ascending") for name in ("uid", "url", "caption")])
    if table.num_rows < 2:
        return table, 0
    uids = table["uid"].combine_chunks()
    repeated = pc.equal(uids[1:], uids[:-1]).to_numpy(zero_copy_only=False)
    return table.filter(pa.array(np.concatenate([[True], ~repeated]))), int(repeated.sum())


def _bucket(scratch: Path, bucket: int) -> Path:
    return scratch / f"{bucket:03d}.arrow"


def _read_bucket(scratch: Path, bucket: int) -> pa.Table:
    with pa.ipc.open_stream(str(_bucket(scratch, bucket))) as reader:
        return reader.read_all()
