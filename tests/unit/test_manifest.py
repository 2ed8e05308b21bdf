"""The manifest: what is written is read back, sample indices are exact, and damage never passes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.manifest import read_manifest, rows_fingerprint, write_manifest
from pipeline.errors import UserError

SAMPLES = [3, 1, 5]


def rows(samples: list[int] = SAMPLES) -> list[dict]:
    return [
        {
            "path": f"shards/{i:05d}-000.tar",
            "samples": n,
            "bytes": 1000 + n,
            "sha256": f"{i}" * 64,
            "index_sha256": f"{i + 1}" * 64,
            "work_item": i,
            "attempt": 0,
        }
        for i, n in enumerate(samples)
    ]


@pytest.mark.parametrize("name", ["", "manifest.json", "manifest.parquet"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    digest = write_manifest(tmp_path, rows(), {"licence": "CC0-1.0"})
    manifest = read_manifest(tmp_path / name)
    assert manifest.fingerprint == digest
    assert manifest.samples.tolist() == SAMPLES
    assert manifest.first_sample_index.tolist() == [0, 3, 4]
    assert manifest.first_sample_index.dtype == np.int64
    assert manifest.total_samples == 9
    assert manifest.shard(1) == (str(tmp_path / "shards/00001-000.tar"), 1, 1001, "1" * 64, "2" * 64)
    summary = json.loads((tmp_path / "manifest.json").read_text())
    assert (summary["shards"], summary["samples"], summary["licence"]) == (3, 9, "CC0-1.0")


def test_fingerprint_is_of_content_and_order() -> None:
    reference = rows_fingerprint(rows())
    assert reference == rows_fingerprint([{**row, "attempt": 7, "first_sample_index": 1} for row in rows()])
    assert reference != rows_fingerprint(rows()[::-1])
    for key, value in {"path": "x", "samples": 4, "bytes": 1, "sha256": "f" * 64, "index_sha256": "f" * 64}.items():
        assert reference != rows_fingerprint([{**rows()[0], key: value}, *rows()[1:]])


def test_missing_manifest_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json is missing.*data-prep manifest"):
        read_manifest(tmp_path)


def test_no_shards_is_an_error(tmp_path: Path) -> None:
    write_manifest(tmp_path, [], {})
    with pytest.raises(UserError, match="no usable rows"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.parquet"])
def test_damaged_file(tmp_path: Path, name: str) -> None:
    write_manifest(tmp_path, rows(), {})
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("column", ["samples", "sha256", "index_sha256", "first_sample_index"])
def test_files_that_disagree(tmp_path: Path, column: str) -> None:
    write_manifest(tmp_path, rows(), {})
    table = pq.read_table(tmp_path / "manifest.parquet").to_pylist()
    table[1][column] = "0" * 64 if "sha256" in column else 2
    schema = pq.read_schema(tmp_path / "manifest.parquet")
    pq.write_table(pa.Table.from_pylist(table, schema), tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match="disagree"):
        read_manifest(tmp_path)


def test_another_parquet_file_is_no_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path, rows(), {})
    pq.write_table(pa.table({"url": ["u"]}), tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match="holds no manifest"):
        read_manifest(tmp_path)
