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
from data_prep.downloaded import shard_files
from data_prep.speed import Speed
from pipeline.errors import UserError
from pipeline.locks import exclusive
from tests.unit.downloads_support import planned


@pytest.mark.parametrize("failure", [UserError, KeyboardInterrupt])
def test_the_lock_is_held_until_the_last_shard_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    corpus = planned(tmp_path, 6, samples_per_shard=2)[0]  # three shards, two at a time: one fails, one runs, one waits
    running = threading.Event()
    ran: list[int] = []
    locked: list[bool] = []

    def shard(job: data_prep.download.Shard) -> dict[str, int]:
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
        return {}

    monkeypatch.setattr(data_prep.download, "_download_shard", shard)
    monkeypatch.setattr(data_prep.download, "worker_pool", ThreadPoolExecutor)
    fetch = corpus.definition.fetch.model_copy(update={"processes": 2})
    with pytest.raises(failure, match="img2dataset failed"):
        data_prep.download.download(corpus, fetch)
    assert locked, "the running shard was not waited for"
    assert all(locked), "another process could have written into the folder"
    with exclusive(corpus.lock("item-00000"), "item"):
        pass


def test_an_item_is_judged_by_its_first_thousand_rows_in_however_small_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = planned(tmp_path, 3000, samples_per_shard=100)[0]
    ran: list[int] = []

    def shard(job: data_prep.download.Shard) -> dict[str, int]:
        """All of its rows are refused; from the fourth on the network is gone, the first time."""
        if job.number >= 3 and -1 not in ran:
            raise UserError("img2dataset failed")
        ran.append(job.number)
        tar, records, stats = shard_files(job.folder, job.number)
        tar.touch()
        uids = pa.ipc.open_file(str(job.rows)).read_all()["uid"]
        failed = {"status": ["failed_to_download"] * 100, "error_message": ["HTTP Error 403: Forbidden"] * 100}
        pq.write_table(pa.table({"uid": uids, **failed}), records)
        job.rows.unlink()
        stats.write_text('{"status_dict": {}, "successes": 0}')
        return {"http_403": 100}

    monkeypatch.setattr(data_prep.download, "_download_shard", shard)
    monkeypatch.setattr(data_prep.download, "worker_pool", ThreadPoolExecutor)
    monkeypatch.setattr(data_prep.download, "measure_speed", lambda *_: Speed({"ok": 1}, 1, 1.0))
    fetch = corpus.definition.fetch
    with pytest.raises(UserError, match="img2dataset failed"):
        data_prep.download.download(corpus, fetch, expected_yield=0.8)
    ran.append(-1)
    with pytest.raises(UserError, match=r"0 of 1,000 rows are images, where 80% were expected \(1,000 http_403\)"):
        data_prep.download.download(corpus, fetch, expected_yield=0.8)
    assert ran[:11] == [0, 1, 2, -1, *range(3, 10)], "the shards that were finished count"
    assert len(ran) <= 13, "what had begun may end"
    assert not list(corpus.download(0).glob("*_stats.json")), "the next run makes them again"
    ran[:] = [-1]
    assert data_prep.download.download(corpus, fetch, expected_yield=0)[0][0].outcomes == {"http_403": 3000}
    assert ran == [-1, *range(30)]
