"""The list that ingest starts from: which image lies where, and what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.rows import ROW_SCHEMA
from pipeline.files import atomic_open


def write_listing(path: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    """Write (uid, url, caption) rows as Parquet, atomically. uid: 32 hex digits."""
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    with atomic_open(path) as stream:
        pq.write_table(pa.Table.from_arrays(columns, schema=ROW_SCHEMA), stream)
