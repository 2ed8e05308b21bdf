"""Download folders as img2dataset leaves them, written by hand."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.corpus import Corpus, CorpusDefinition
from data_prep.downloaded import shard_files, write_done
from data_prep.plan import Plan, make_plan, read_item
from data_prep.watch import UNSTATED_YIELD

ROWS, DOWNLOAD_SHARD = 20, 8
Entry = dict[str, Any]  # a planned row with its record, and what img2dataset stored of it
Toy = tuple[Corpus, Plan, list[Entry]]  # planned, in one item


def encoded(kind: str, number: int = 0, **options: Any) -> bytes:
    """A small image that only `number` decides."""
    pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def planned(
    folder: Path, rows: int = ROWS, tasks: int = 1, samples_per_shard: int = DOWNLOAD_SHARD
) -> tuple[Corpus, Plan]:
    """A corpus of so many rows, planned."""
    (folder / "metadata").mkdir(parents=True)
    table = {"url": [f"http://h/{i}" for i in range(rows)], "caption": [f"caption {i}" for i in range(rows)]}
    pq.write_table(pa.table(table), folder / "metadata/0.parquet")
    corpus = Corpus(folder, CorpusDefinition(name="toy", title="Toy", licence="CC0-1.0", source="a test"))
    return corpus, make_plan(corpus, tasks=tasks, samples_per_shard=samples_per_shard)[0]


def entries(corpus: Corpus, plan: Plan, item: int) -> list[Entry]:
    """All rows of an item, downloaded well."""
    return [
        {**row, "image": encoded("JPEG", number), "status": "success", "error_message": None}
        for number, row in enumerate(read_item(corpus, plan, item).to_pylist())
    ]


def write_shard_files(folder: Path, shard: int, rows: list[Entry], order: int = 1) -> None:
    """One shard as img2dataset leaves it. order: -1 as if the downloads had ended the other way round."""
    tar, records, stats = shard_files(folder, shard)
    with tarfile.open(tar, "w") as archive:
        for number, row in list(enumerate(rows))[::order]:
            if row["status"] != "success":
                continue
            facts = {key: row[key] for key in ("uid", "url", "caption")}
            facts |= {"sha256": "0" * 64, "original_width": 50, "original_height": 40}
            parts = {"jpg": row["image"], "txt": row["caption"].encode(), "json": json.dumps(facts).encode()}
            for kind, content in parts.items():
                member = tarfile.TarInfo(f"{shard:05d}{number:04d}.{kind}")
                member.size, member.mtime = len(content), 1e9 + order
                if kind != row.get("without"):
                    archive.addfile(member, io.BytesIO(content))
    columns = ("uid", "url", "status", "error_message")
    schema = pa.schema([(name, pa.string()) for name in columns])
    recorded = [{name: row[name] for name in columns} for row in rows if not row.get("unrecorded")]
    pq.write_table(pa.Table.from_pylist(recorded, schema), records)
    successes = sum(row["status"] == "success" for row in rows)
    stats.write_text(json.dumps({"count": len(rows), "successes": successes, "status_dict": {}}))


def downloaded(corpus: Corpus, plan: Plan, item: int, rows: list[Entry], order: int = 1) -> None:
    """The item as it is once all of it is downloaded. rows, order: as of `write_shard_files`."""
    folder = corpus.download(item)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(rows), DOWNLOAD_SHARD)
    for shard, start in enumerate(starts):
        write_shard_files(folder, shard, rows[start : start + DOWNLOAD_SHARD], order)
    write_done(corpus, plan, item, UNSTATED_YIELD)


def outcomes(corpus: Corpus, item: int = 0) -> dict[str, str]:
    """By uid, as verified."""
    table = pq.read_table(corpus.outcomes(item))
    return dict(zip(table["uid"].to_pylist(), table["outcome"].to_pylist(), strict=True))
