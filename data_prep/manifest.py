"""The manifest of a corpus: which shards are proven, how long they are, and what they hash to.

A leaf: the training side imports this file and `shard.py`, and nothing else of `data_prep`.

    manifest.parquet   one row per shard, in order: path, samples, bytes, sha256, index_sha256,
                       first_sample_index, work_item, attempt
    manifest.json      totals, licence, outcome of every planned row, and the fingerprint

`sample_index` of a sample is its shard's `first_sample_index` plus its row in the shard: stable as long as
the fingerprint is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.files import atomic_open, fingerprint, read_json, write_json

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


@dataclass(frozen=True)
class Manifest:
    """The proven shards of one corpus, S of them.

    folder: shard paths are relative to it.
    paths: (S,) strings. samples, first_sample_index: (S,) int64. fingerprint: of the rows, hex sha256.
    """

    folder: Path
    paths: list[str]
    samples: np.ndarray
    first_sample_index: np.ndarray
    fingerprint: str

    @property
    def total_samples(self) -> int:
        return int(self.samples.sum())

    def shard_path(self, shard: int) -> Path:
        return self.folder / self.paths[shard]


def rows_fingerprint(rows: list[dict[str, Any]]) -> str:
    """Hex sha256 of what the shards are, in their order, wherever they lie."""
    what = ("path", "samples", "bytes", "sha256", "index_sha256")
    return fingerprint([[row[column] for column in what] for row in rows])


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
    """Open a manifest: the folder that holds it, or either of its two files.

    Raises UserError when it is missing, empty or damaged, or when the two files disagree.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    command = f"`data-prep manifest {folder.absolute().name}`"
    try:
        summary = read_json(folder / "manifest.json")
        table = pq.read_table(folder / "manifest.parquet")
    except FileNotFoundError as error:
        raise UserError(
            f"no manifest at {folder}: {Path(error.filename or folder).name} is missing. Publish one with {command}."
        ) from error
    except ValueError as error:  # JSON's and Arrow's complaints are ValueErrors
        raise UserError(f"the manifest at {folder} is damaged: {error}. Run {command} again.") from error
    if table.schema != SCHEMA or not isinstance(summary, dict):
        raise UserError(f"{folder} holds no manifest of this program (columns {', '.join(table.column_names)})")
    if table.num_rows == 0:
        raise UserError(f"the manifest at {folder} lists no shards: the corpus has no usable rows")
    samples = table["samples"].to_numpy()
    firsts = table["first_sample_index"].to_numpy()
    if rows_fingerprint(table.to_pylist()) != summary.get("fingerprint") or any(firsts != _first_indices(samples)):
        raise UserError(f"manifest.parquet and manifest.json at {folder} disagree (fingerprint). Run {command} again.")
    return Manifest(folder, table["path"].to_pylist(), samples, firsts, summary["fingerprint"])


def _first_indices(samples: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.cumsum(samples, dtype=np.int64) - np.asarray(samples, dtype=np.int64)
