"""Copies of remote shards that several processes share: whole, within their bound, and fetched once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep.manifest import ShardFile
from pipeline.config.schema import LoaderConfig
from pipeline.data.cache import ShardCache
from pipeline.data.loader import Corpus
from pipeline.errors import UserError
from tests.conftest import write_corpus
from tests.storage_support import ShardServer, batches, original, shards_of, tokens

FORK = multiprocessing.get_context("fork")


def read_all(cache: ShardCache, shards: list[ShardFile], order: list[int], expected: dict[str, bytes]) -> None:
    """Exits 0 if every shard read is what it should be. For processes of their own."""
    wrong = any(cache.read(shards[n], 0, shards[n].bytes) != expected[shards[n].sha256] for n in order)
    os._exit(int(wrong))


def test_processes_share_one_fetch_of_each_shard(server: ShardServer, noise_corpus: Path, tmp_path: Path) -> None:
    shards = shards_of(server)
    expected = {shard.sha256: original(server, shard) for shard in shards}
    cache = ShardCache(tmp_path, 10**9)
    arguments = (cache, shards, [0, 1, 2, 3, 4] * 3, expected)
    processes = [FORK.Process(target=read_all, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(server.whole_shards()) == [f"/shards/0000{n}-000.tar" for n in range(5)]


def test_the_bound_is_kept_while_processes_compete_for_it(server: ShardServer, tmp_path: Path) -> None:
    shards = shards_of(server)
    expected = {shard.sha256: original(server, shard) for shard in shards}
    limit = sum(sorted(shard.bytes for shard in shards)[-2:]) + 1000  # the two largest, no more
    cache = ShardCache(tmp_path, limit)
    cache.read(shards[0], 0, 1)
    rng = np.random.default_rng(0)
    processes = [
        FORK.Process(target=read_all, args=(cache, shards, rng.integers(0, 5, 25).tolist(), expected)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    most = 0
    while any(process.is_alive() for process in processes):
        held = 0
        for path in tmp_path.iterdir():
            try:
                held += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:
                continue
        most = max(most, held)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert 0 < most <= limit
    assert len(server.whole_shards()) > 5  # it had to remove some


def test_what_was_not_read_for_longest_goes_first(server: ShardServer, tmp_path: Path) -> None:
    shards = shards_of(server)
    cache = ShardCache(tmp_path, sum(shards[n].bytes for n in (0, 1, 2)))
    for n in (0, 1, 3, 0):  # the fourth has one sample
        cache.read(shards[n], 0, 1)
        time.sleep(0.01)
    cache.read(shards[4], 0, 1)
    cache.read(shards[2], 0, 1)
    kept = {path.stem for path in tmp_path.glob("*.tar")}
    assert shards[1].sha256 not in kept
    assert shards[2].sha256 in kept
    assert sum(path.stat().st_size for path in tmp_path.glob("*.tar")) <= cache.limit_bytes


@pytest.mark.parametrize("damage", ["overwritten", "cut", "grown", "replaced"])
def test_a_file_changed_by_others_is_fetched_again_not_read(server: ShardServer, tmp_path: Path, damage: str) -> None:
    shard = shards_of(server)[0]
    cache = ShardCache(tmp_path, 10**9)
    content = cache.read(shard, 0, shard.bytes)
    path = next(tmp_path.glob("*.tar"))
    if damage == "replaced":
        (tmp_path / "other").write_bytes(bytes(len(content)))
        os.replace(tmp_path / "other", path)
    else:
        with open(path, "r+b") as stream:
            if damage == "overwritten":
                stream.seek(1000)
                stream.write(b"\xff" * 100)
            elif damage == "cut":
                stream.truncate(1500)
            else:
                stream.seek(0, os.SEEK_END)
                stream.write(bytes(512))
    assert cache.read(shard, 0, shard.bytes) == content == original(server, shard)
    assert len(server.whole_shards()) == 2


def test_a_process_killed_while_fetching_leaves_nothing_that_is_read_or_stays(
    server: ShardServer, tmp_path: Path
) -> None:
    shards = shards_of(server)
    expected = {shard.sha256: original(server, shard) for shard in shards}
    cache = ShardCache(tmp_path, sum(sorted(shard.bytes for shard in shards)[-2:]))
    server.pause_seconds = 30
    process = FORK.Process(target=read_all, args=(cache, shards, [0], expected))
    process.start()
    while not server.whole_shards():
        time.sleep(0.01)
    assert list(tmp_path.glob("*.partial"))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    server.pause_seconds = 0
    for n in (2, 4, 0):
        assert cache.read(shards[n], 0, shards[n].bytes) == expected[shards[n].sha256]
    assert not list(tmp_path.glob("*.partial"))


def test_what_a_dead_process_left_is_removed_by_one_that_takes_the_same_lock(
    server: ShardServer, tmp_path: Path
) -> None:
    shard = shards_of(server)[0]
    (tmp_path / f"{shard.sha256[:3]}{'0' * 61}.{shard.bytes}.partial").touch()
    cache = ShardCache(tmp_path, shard.bytes + 1)  # no room for both
    assert cache.read(shard, 0, shard.bytes) == original(server, shard)
    assert [path.suffix for path in tmp_path.iterdir() if path.is_file()] == [".tar"]


def test_a_download_cut_short_is_tried_again_then_a_message(
    server: ShardServer, tmp_path: Path, quick_retries: None
) -> None:
    shard = shards_of(server)[0]
    server.cut = 100
    with pytest.raises(UserError, match=rf"{shard.path} cannot be read, tried 4 times"):
        ShardCache(tmp_path, 10**9).read(shard, 0, 1)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_other_content_under_the_url_is_refused(server: ShardServer, tmp_path: Path) -> None:
    server.folder = write_corpus(tmp_path / "corpus", [5])
    shard = shards_of(server)[0]
    content = original(server, shard)
    (tmp_path / "corpus" / "shards" / "00000-000.tar").write_bytes(content[:-600] + b"x" + content[-599:])
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=rf"{shard.path} is not what the manifest says"):
        ShardCache(cache, 10**9).read(shard, 0, 1)
    assert not [path for path in cache.iterdir() if path.is_file()]


@pytest.mark.parametrize("reachable", [True, False])
def test_shards_are_fetched_before_their_turn(
    server: ShardServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_retries: None, reachable: bool
) -> None:
    monkeypatch.setattr("pipeline.data.loader.AHEAD_SAMPLES", 150)
    config = LoaderConfig(manifest=server.url, lanes=1, shuffle_window=10, cache=str(tmp_path))
    corpus = Corpus(config, 3, 16, tokens)
    now, later = ({int(shard) for shard in corpus.order.locate(np.arange(4) + first)[0]} for first in (0, 150))
    assert later - now
    corpus.reader.read([(shard, 0) for shard in now])
    server.failures = 0 if reachable else 10**6
    batch = corpus.__getitems__(list(range(4)))  # whether or not what comes later can be had
    assert len(batch.sample_index) == 4
    corpus.reader.cache._ahead.join(60)
    fetched = {path.stem for path in tmp_path.glob("*.tar")}
    assert fetched == {corpus.reader.shard(shard).sha256 for shard in (now | later if reachable else now)}


def test_a_reference_subset_does_not_fill_the_cache(server: ShardServer, tmp_path: Path) -> None:
    """1,024 samples of 1,024 shards would fetch them all, for one image each."""
    corpus = Corpus(LoaderConfig(manifest=server.url, cache=str(tmp_path)), 0, 16, tokens)
    assert corpus.by_sample_index(np.array([3, 100, 202])).sample_index.tolist() == [3, 100, 202]
    assert server.whole_shards() == []


def test_a_folder_that_cannot_be_made_says_so(noise_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"loader\.cache: .*file cannot be made"):
        Corpus(LoaderConfig(manifest=str(noise_corpus), cache=str(tmp_path / "file")), 0, 16, tokens)


def test_a_cache_smaller_than_a_shard_says_so(server: ShardServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loader\.cache_gib is less than one shard"):
        batches(server.url, cache=str(tmp_path), cache_gib=1e-6)
