"""Corpora on a web server, which fails, cuts short and sends something else; and what is refused of shards anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.manifest import read_manifest
from pipeline.config.schema import LoaderConfig
from pipeline.data.loader import Corpus
from pipeline.errors import UserError
from tests.conftest import write_corpus
from tests.storage_support import ShardServer, batches, same, tokens


def test_a_kind_of_url_that_nothing_reads_is_a_message() -> None:
    with pytest.raises(UserError, match=r"nowhere://a/manifest\.json cannot be read"):
        read_manifest("nowhere://a")


def test_ranges_are_all_that_is_fetched(server: ShardServer, noise_corpus: Path) -> None:
    assert same(batches(server.url, last=3), batches(str(noise_corpus), last=3))
    assert server.whole_shards() == []
    assert sum(path.endswith(".tar") for path, _ in server.requests) == 96


@pytest.mark.parametrize("cached", [False, True], ids=["ranges", "cached"])
def test_errors_that_pass_leave_no_trace(
    server: ShardServer, noise_corpus: Path, tmp_path: Path, quick_retries: None, cached: bool
) -> None:
    server.failures = 2
    settings = {"cache": str(tmp_path)} if cached else {}
    assert same(batches(server.url, last=2, **settings), batches(str(noise_corpus), last=2))


def test_errors_that_stay_end_the_run_with_the_url(server: ShardServer, quick_retries: None) -> None:
    reader = Corpus(LoaderConfig(manifest=server.url), 0, 16, tokens).reader
    reader.read([(0, 0)])
    server.failures = 10**6
    with pytest.raises(UserError, match=rf"{server.url}/shards/00000-000\.tar cannot be read, tried 4 times.*503"):
        reader.read([(0, 1)])


def test_an_index_that_is_not_the_manifests_is_refused(server: ShardServer, tmp_path: Path) -> None:
    server.folder = write_corpus(tmp_path, [5])
    reader = Corpus(LoaderConfig(manifest=server.url), 0, 16, tokens).reader
    index = tmp_path / "shards" / "00000-000.index.npy"
    index.write_bytes(index.read_bytes()[:-8] + bytes(8))
    with pytest.raises(UserError, match=r"00000-000\.index\.npy is not what the manifest says"):
        reader.read([(0, 0)])


def test_an_index_of_other_length_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, [5])
    index = folder / "shards" / "00000-000.index.npy"
    np.save(index, np.load(index)[:4])
    with pytest.raises(UserError, match=r"index\.npy lists 4 samples, the manifest 5"):
        Corpus(LoaderConfig(manifest=str(folder)), 0, 16, tokens).by_sample_index(np.array([0]))


def test_a_shard_cut_short_is_a_message(server: ShardServer, tmp_path: Path) -> None:
    server.folder = write_corpus(tmp_path, [5])
    shard = tmp_path / "shards" / "00000-000.tar"
    shard.write_bytes(shard.read_bytes()[:9000])
    for manifest in (server.url, str(tmp_path)):
        with pytest.raises(UserError, match=r"00000-000\.tar gave \d+ bytes where"):
            Corpus(LoaderConfig(manifest=manifest), 0, 16, tokens).by_sample_index(np.array([4]))


def test_a_batch_of_more_shards_than_are_held_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.shards.OPEN_SHARDS", 3)
    folder = write_corpus(tmp_path, [2] * 9)
    corpus = Corpus(LoaderConfig(manifest=str(folder)), 0, 16, tokens)
    for _ in range(2):
        assert corpus.by_sample_index(np.arange(18)[::-1].copy()).tokens.squeeze(1).tolist() == list(range(18))[::-1]
