"""A work item's lock outlives every process that writes into its folder, however the download ends."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data_prep.download
from data_prep.corpus import Corpus, CorpusDefinition
from data_prep.plan import make_plan
from pipeline.errors import UserError
from pipeline.locks import exclusive


def planned(folder: Path, rows: int, samples_per_shard: int) -> Corpus:
    (folder / "metadata").mkdir(parents=True)
    table = {"url": [f"http://h/{i}" for i in range(rows)], "caption": [f"caption {i}" for i in range(rows)]}
    pq.write_table(pa.table(table), folder / "metadata/0.parquet")
    corpus = Corpus(folder, CorpusDefinition(name="toy", title="Toy", licence="CC0-1.0"))
    make_plan(corpus, tasks=1, samples_per_shard=samples_per_shard)
    return corpus


@pytest.mark.parametrize("failure", [UserError, KeyboardInterrupt])
def test_the_lock_is_held_until_the_last_shard_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    corpus = planned(tmp_path, 6, 2)  # three shards, two at a time: one fails, one runs, one waits
    running = threading.Event()
    ran: list[int] = []
    locked: list[bool] = []

    def shard(job: data_prep.download.Shard) -> None:
        ran.append(job.number)
        if job.number == 0:
            running.wait(10)
            raise failure("img2dataset failed")
        running.set()
        time.sleep(0.3)
        try:
            with exclusive(corpus.lock("item-00000"), "item"):
                locked.append(False)
        except UserError:
            locked.append(True)

    monkeypatch.setattr(data_prep.download, "_download_shard", shard)
    monkeypatch.setattr(data_prep.download, "worker_pool", ThreadPoolExecutor)
    fetch = corpus.definition.fetch.model_copy(update={"processes": 2})
    with pytest.raises(failure, match="img2dataset failed"):
        data_prep.download.download(corpus, fetch)
    assert locked, "the running shard was not waited for"
    assert all(locked), "another process could have written into the folder"
    with exclusive(corpus.lock("item-00000"), "item"):
        pass
