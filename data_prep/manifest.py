"""The manifest of a corpus: which shards are proven, how long they are, and what they hash to.

A leaf: the training side imports this file and `shard.py`, and nothing else of `data_prep`. A manifest and
its shards may lie at any URL that fsspec reads.

    manifest.parquet   one row per shard, in order: path, samples, bytes, sha256, index_sha256,
                       first_sample_index, work_item, attempt
    manifest.json      totals, licence, outcome of every planned row, and the fingerprint

`sample_index` of a sample is its shard's `first_sample_index` plus its row in the shard: stable as long as
the fingerprint is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.corpus_files import PUBLISHED
from data_prep.shard import index_path
from pipeline.errors import UserError
from pipeline.files import atomic_open, sha256_file, write_json
from pipeline.storage import is_url, join, read_bytes

MANIFEST_FILES = ("manifest.json", "manifest.parquet")
SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # relative to the manifest's folder
        ("samples", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("index_sha256", pa.string()),  # of the byte index beside it
        ("first_sample_index", pa.int64()),
        ("work_item", pa.int32()),
        ("attempt", pa.int32()),
    ]
)


DECIDES = ("path", "samples", "bytes", "sha256", "index_sha256")  # what the fingerprint is of


class ShardFile(NamedTuple):
    """What the manifest says of one shard. path: absolute, relative as the manifest's folder is, or a URL."""

    path: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Manifest:
    """The proven shards of one corpus, S of them.

    folder: path or URL; shard paths are relative to it. table: S rows of SCHEMA, as Arrow keeps them: a forked
    loader process shares their memory, and 100,000 shards are 20 MB. samples, first_sample_index: (S,) int64.
    fingerprint: of the rows, hex sha256. summary: what manifest.json says.
    """

    folder: str
    table: pa.Table
    samples: np.ndarray
    first_sample_index: np.ndarray
    fingerprint: str
    summary: dict[str, Any]

    @property
    def total_samples(self) -> int:
        return int(self.samples.sum())

    def shard(self, shard: int) -> ShardFile:
        path, *rest = (self.table[column][shard].as_py() for column in DECIDES)
        return ShardFile(join(self.folder, path), *rest)


def shard_row(folder: Path, shard: Path, samples: int, work_item: int, attempt: int = 0) -> dict[str, Any]:
    """The row of a shard that lies in the manifest's folder with its index: a column each, but `first_sample_index`."""
    return {
        "path": str(shard.relative_to(folder)),
        "samples": samples,
        "bytes": shard.stat().st_size,
        "sha256": sha256_file(shard),
        "index_sha256": sha256_file(index_path(shard)),
        "work_item": work_item,
        "attempt": attempt,
    }


def rows_fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hex sha256 of what the shards are, in their order, wherever they lie."""
    return _digest([row[column] for column in DECIDES] for row in rows)


def summarise(rows: list[dict[str, Any]], totals: dict[str, Any]) -> dict[str, Any]:
    """The content of `manifest.json`. totals: what else it should say."""
    return {
        "fingerprint": rows_fingerprint(rows),
        "shards": len(rows),
        "samples": sum(row["samples"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        **totals,
    }


def write_manifest(folder: Path, rows: list[dict[str, Any]], totals: dict[str, Any]) -> str:
    """Publish `manifest.parquet`, then `manifest.json`, each atomically; returns the fingerprint.

    rows: dicts with the columns of SCHEMA but `first_sample_index`, which is computed here, in final order.
    totals: what else `manifest.json` should say (rows planned, outcomes by cause, licence, ...).
    """
    firsts = _first_indices([row["samples"] for row in rows]).tolist()
    complete = [{**row, "first_sample_index": first} for row, first in zip(rows, firsts, strict=True)]
    with atomic_open(folder / "manifest.parquet") as stream:
        pq.write_table(pa.Table.from_pylist(complete, schema=SCHEMA), stream)
    summary = summarise(rows, totals)
    write_json(folder / "manifest.json", summary)
    return summary["fingerprint"]


def read_manifest(path: Path | str) -> Manifest:
    """Open a manifest: the folder that holds it, or either of its two files; paths or URLs.

    Raises UserError when it is missing, empty or damaged, or when the two files disagree.
    """
    folder = _folder(str(path))
    command = f"`data-prep manifest {folder.rstrip('/').rpartition('/')[2]}`"
    try:
        summary = json.loads(_read(folder, "manifest.json", command))
        table = pq.read_table(pa.BufferReader(_read(folder, "manifest.parquet", command))).combine_chunks()
    except (ValueError, RecursionError) as error:  # JSON's and Arrow's complaints are ValueErrors
        raise UserError(f"the manifest at {folder} is damaged: {error}. Run {command} again.") from error
    if problem := PUBLISHED.problem(summary):
        raise UserError(f"the manifest at {folder} is damaged: manifest.json: {problem}. Run {command} again.")
    if table.schema != SCHEMA:
        raise UserError(f"{folder} holds no manifest of this program (columns {', '.join(table.column_names)})")
    if table.num_rows == 0:
        raise UserError(f"the manifest at {folder} lists no shards: the corpus has no usable rows")
    samples = table["samples"].to_numpy()
    firsts = table["first_sample_index"].to_numpy()
    if _digest(_rows(table)) != summary["fingerprint"] or any(firsts != _first_indices(samples)):
        raise UserError(f"manifest.parquet and manifest.json at {folder} disagree (fingerprint). Run {command} again.")
    return Manifest(folder, table, samples, firsts, summary["fingerprint"], summary)


def _folder(path: str) -> str:
    parent, _, name = path.rpartition("/")
    if name in MANIFEST_FILES:
        path = parent or "."
    return path if is_url(path) else str(Path(path).absolute())


def _read(folder: str, name: str, command: str) -> bytes:
    try:
        return read_bytes(join(folder, name))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"no manifest at {folder}: {name} is missing. Publish one with {command}.") from error


def _digest(rows: Iterable[Sequence[Any]]) -> str:
    """sha256 of the rows as one compact JSON list, made row by row: 100,000 of them are 25 MB."""
    digest = hashlib.sha256(b"[")
    for number, row in enumerate(rows):
        text = json.dumps(row, separators=(",", ":"), ensure_ascii=False)
        digest.update(f"{',' if number else ''}{text}".encode())
    digest.update(b"]")
    return digest.hexdigest()


def _rows(table: pa.Table) -> Iterable[tuple[Any, ...]]:
    """The columns DECIDES row by row, few at a time."""
    for batch in table.select(DECIDES).to_batches(max_chunksize=1024):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _first_indices(samples: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.cumsum(samples, dtype=np.int64) - np.asarray(samples, dtype=np.int64)
