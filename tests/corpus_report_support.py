"""A corpus with every kind of record that its report reads, some of them hostile."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.corpus import Corpus, CorpusDefinition
from data_prep.manifest import read_manifest, write_manifest
from pipeline.files import fingerprint, write_json
from tests.conftest import write_corpus

HOSTILE = "<img src=x onerror=\"window.hacked = 1\"> & 'quoted' \u202e é"
OUTCOMES = {"ok": 60, "http_404": 25, "timeout": 10, "dns": 5}


def fabricate_corpus(folder: Path, stage: str = "published") -> Corpus:
    """100 rows of four hosts, 60 of them samples in 3 shards, the first 10 of which share an image's hash.

    stage: how far it has come: planned, verified or published.
    """
    definition = CorpusDefinition(name="c", title=HOSTILE, licence="none", source=HOSTILE, published_yield=0.8)
    corpus = Corpus(folder, definition)
    wanted = {"corpus": "c", "tasks": 2, "samples_per_shard": 50, "settings": {}, "inputs": {}}
    items = [{"item": item, "path": f"plan/{item:05d}.parquet", "rows": 50, "sha256": "0" * 64} for item in range(2)]
    plan = {**wanted, "items": items, "fingerprint": fingerprint([wanted, items])}
    found = {"rows_read": 130, "rows_planned": 100, "dropped": {"no_caption": 20, "duplicate": 10}}
    write_json(corpus.plan_file, {**plan, **found})
    if stage == "planned":
        return corpus
    causes = [cause for cause, rows in OUTCOMES.items() for _ in range(rows)]
    for item in range(2):
        rows = [
            {"url": f"https://host-{n % 4}.example/{n}", "outcome": cause}
            for n, cause in enumerate(causes)
            if n % 2 == item
        ]
        corpus.outcomes(item).parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), corpus.outcomes(item))
        stats = {"start_time": 1000.0 + 30 * item, "end_time": 1060.0 + 30 * item, "count": 50, "successes": 30}
        stats["status_dict"] = {"success": 30}
        write_json(corpus.download(item) / "00000_stats.json", stats)
    (corpus.download(0) / "00001_stats.json").write_text("{ torn")
    if stage == "verified":
        return corpus

    def metadata(number: int) -> dict[str, object]:
        image = hashlib.sha256(b"one" if number < 10 else bytes([number])).hexdigest()
        sizes = {"width": 300, "height": 200 + number, "original_width": 900, "original_height": 600 + number}
        return {"sha256": image, **sizes}

    captions = {0: HOSTILE, 1: "Привет, мир", 2: "東京の写真です", 3: "12 345", 4: "café au lait"}
    write_corpus(folder, [25, 25, 10], broken=(30,), metadata=metadata, caption=lambda n: captions.get(n, "a cat"))
    rows = read_manifest(folder).table.drop_columns("first_sample_index").to_pylist()
    totals = {"rows_read": 130, "rows": 100, "ok": 60, "outcomes": OUTCOMES}
    write_manifest(folder, rows, {**totals, "dropped": {"no_caption": 20, "duplicate": 10}})
    return corpus
