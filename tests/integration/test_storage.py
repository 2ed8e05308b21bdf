"""Corpora over networks: a real S3 server and a real HTTP server, one that fails, and copies that several share."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from data_prep.cli import main as prepare
from data_prep.corpus import Corpus as PreparedCorpus
from data_prep.corpus import CorpusDefinition
from data_prep.derive import derive
from data_prep.manifest import ShardFile, read_manifest
from data_prep.metadata import fetch_metadata
from data_prep.upload import upload_corpus
from pipeline import storage
from pipeline.config.schema import LoaderConfig
from pipeline.data.cache import ShardCache
from pipeline.data.loader import Batch, Corpus, StepPositions, build_loader
from pipeline.errors import UserError
from pipeline.storage import sizes
from tests.conftest import write_corpus

FORK = multiprocessing.get_context("fork")


def tokens(captions: list[str]) -> torch.Tensor:
    return torch.tensor([[int(caption.split()[1])] for caption in captions])


def batches(manifest: str, workers: int = 0, last: int = 5, **settings: Any) -> list[Batch]:
    config = LoaderConfig(manifest=manifest, lanes=4, workers=workers, **settings)
    corpus = Corpus(config, 3, 16, tokens)
    return list(build_loader(corpus, StepPositions(32, 0, 1, 0, last), config, pin_memory=False))


def same(ones: list[Batch], others: list[Batch]) -> bool:
    return len(ones) == len(others) and all(
        torch.equal(a, b)
        for one, other in zip(ones, others, strict=True)
        for a, b in zip(one[:3], other[:3], strict=True)
    )


class Server(ThreadingHTTPServer):
    """Files of a folder, with ranges. It can fail requests, send less than it should, and be slow."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.requests: list[tuple[str, str | None]] = []  # path and range
        self.failures = 0  # so many requests of each path fail first
        self.seen: Counter[tuple[str, str | None]] = Counter()
        self.cut = 0  # so many bytes of a whole file are not sent
        self.pause_seconds = 0.0  # in the middle of a whole shard
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def whole_shards(self) -> list[str]:
        return [path for path, part in self.requests if path.endswith(".tar") and part is None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, part = self.server, self.headers.get("Range")
        with server.lock:
            server.requests.append((self.path, part))
            server.seen[self.path, part] += 1
            failing = server.seen[self.path, part] <= server.failures
        if failing:
            self.send_error(503)
            return
        try:
            content = (server.folder / self.path.lstrip("/")).read_bytes()
        except FileNotFoundError:
            self.send_error(404)
            return
        if part is not None:
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", part).groups())
            content = content[first : last + 1]
        self.send_response(200 if part is None else 206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        whole_shard = part is None and self.path.endswith(".tar")
        middle = len(content) // 2
        self.wfile.write(content[:middle])
        if whole_shard and server.pause_seconds:
            time.sleep(server.pause_seconds)
        self.wfile.write(content[middle : len(content) - (server.cut if whole_shard else 0)])
        self.close_connection = bool(server.cut)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(noise_corpus: Path) -> Iterator[Server]:
    started = Server(noise_corpus)
    thread = threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield started
    started.shutdown()
    started.server_close()
    thread.join()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_WAIT_SECONDS", 0.01)


# ---- S3


@pytest.fixture(scope="module")
def s3(noise_corpus: Path) -> Iterator[str]:
    """The corpus in a bucket of a moto server, a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "moto's server ended"
                assert time.monotonic() < deadline
                time.sleep(0.1)
        client = boto3.client("s3")
        client.create_bucket(Bucket="corpora")
        for path in noise_corpus.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "corpora", f"noise/{path.relative_to(noise_corpus)}")
        yield "s3://corpora/noise"
        process.terminate()
        process.wait()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True], ids=["ranges", "cached"])
def test_a_corpus_in_s3_gives_the_batches_of_the_folder(
    s3: str, noise_corpus: Path, tmp_path: Path, workers: int, cached: bool
) -> None:
    settings = {"cache": str(tmp_path)} if cached else {}
    assert same(batches(s3, workers, 7, **settings), batches(str(noise_corpus), last=7))
    assert len(list(tmp_path.glob("*.tar"))) == (5 if cached else 0)


def test_the_manifest_in_s3_is_the_same_by_any_of_its_names(s3: str, noise_corpus: Path) -> None:
    local = read_manifest(noise_corpus)
    for name in ("", "/", "/manifest.json", "/manifest.parquet"):
        manifest = read_manifest(s3 + name)
        assert manifest.fingerprint == local.fingerprint
        assert manifest.shard(2).path == f"{s3}/shards/00002-000.tar"


def test_a_subset_of_a_corpus_in_s3_is_that_of_the_folder(s3: str, noise_corpus: Path, tmp_path: Path) -> None:
    """And goes back into S3, the manifest last; a second time nothing is copied."""
    made = [
        derive([source], tmp_path / name / "few", where="n < 90", samples_per_shard=20)[0]
        for source, name in ((s3, "remote"), (str(noise_corpus), "local"))
    ]
    assert made[0]["fingerprint"] == made[1]["fingerprint"]
    folder, url = tmp_path / "remote" / "few", "s3://corpora/few"
    assert upload_corpus(folder, url, dry_run=True)["missing"] == 10
    assert sizes(url) == {}
    assert upload_corpus(folder, url)["uploaded"] == 10
    assert read_manifest(url).fingerprint == made[0]["fingerprint"]
    assert same(batches(url, last=2), batches(str(folder), last=2))
    again = upload_corpus(folder, url)
    assert (again["uploaded"], again["already_there"]) == (0, 10)
    with pytest.raises(UserError, match="another corpus lies at s3://corpora/noise"):
        upload_corpus(folder, s3)
    shard = folder / "shards" / "00000-000.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"00000-000\.tar is not what the manifest says"):
        upload_corpus(folder, "s3://corpora/other")
    assert "manifest.json" not in sizes("s3://corpora/other")


def test_metadata_is_copied_from_s3(s3: str, noise_corpus: Path, tmp_path: Path) -> None:
    tree = {"name": "c", "title": "t", "licence": "l", "urls": [f"{s3}/*.parquet"]}
    corpus = PreparedCorpus(tmp_path, CorpusDefinition.model_validate(tree))
    assert fetch_metadata(corpus)["fetched"] == 1
    assert fetch_metadata(corpus)["fetched"] == 0
    (copied,) = corpus.metadata_files().values()
    assert copied.read_bytes() == (noise_corpus / "manifest.parquet").read_bytes()


def test_lists_in_s3_are_planned(s3: str, tmp_path: Path) -> None:
    client = boto3.client("s3")
    for part in range(3):
        lines = [f"http://h/{part}-{row},picture {row}" for row in range(4)]
        client.put_object(Bucket="corpora", Key=f"lists/{part}.csv", Body="\n".join(["url,caption", *lines]).encode())
    facts = "name: lists\ntitle: Lists\nlicence: none\nmetadata: s3://corpora/lists/*.csv\n"
    (tmp_path / "lists.yaml").write_text(facts)

    def plan(*arguments: str) -> Result:
        return CliRunner().invoke(prepare, ["--root", str(tmp_path), "plan", "lists", *arguments])

    assert "run `data-prep metadata lists`" in plan("--dry-run").output
    assert not (tmp_path / "lists").exists()
    assert "planned 12 of 12 rows" in plan().output
    client.delete_object(Bucket="corpora", Key="lists/2.csv")  # the plan's copies are asked for no more
    assert "already planned" in plan().output
    assert "planned: it" in plan("--explain", "http://h/2-3").output
    record = json.loads((tmp_path / "lists/metadata.json").read_text())
    del record["files"]["metadata/1.csv"]  # as if killed before it was here
    (tmp_path / "lists/metadata.json").write_text(json.dumps(record))
    refused = plan("--dry-run")
    assert refused.exit_code == 2
    assert "1 of 3 files of metadata are not fetched yet, metadata/1.csv for one" in refused.output


def test_a_corpus_made_of_others_may_go_to_s3(s3: str, tmp_path: Path) -> None:
    def subset(*arguments: str) -> Any:
        command = ["--root", str(tmp_path), "subset", s3, "--out", "s3://corpora/sub/first", "--json", *arguments]
        result = CliRunner().invoke(prepare, [*command, "--where", "n < 40", "--samples-per-shard", "20"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert subset("--dry-run")["rows"] == 40
    assert sizes("s3://corpora/sub") == {}
    made = subset()
    assert (made["new"], made["uploaded"], made["samples"]) == (True, 4, 40)
    assert read_manifest("s3://corpora/sub/first").fingerprint == made["fingerprint"]
    assert read_manifest(tmp_path / "first").fingerprint == made["fingerprint"]
    again = subset()
    assert (again["new"], again["uploaded"]) == (False, 0)


def test_what_is_not_in_s3_is_named(s3: str) -> None:
    with pytest.raises(UserError, match=r"no manifest at s3://corpora/absent: manifest\.json is missing"):
        read_manifest("s3://corpora/absent")
    client = boto3.client("s3")
    for name in ("manifest.json", "manifest.parquet", "shards/00001-000.index.npy", "shards/00001-000.tar"):
        client.copy_object(Bucket="corpora", Key=f"part/{name}", CopySource=f"corpora/noise/{name}")
    client.delete_object(Bucket="corpora", Key="part/shards/00001-000.tar")
    reader = Corpus(LoaderConfig(manifest="s3://corpora/part"), 0, 16, tokens).reader
    for shard in (0, 1):
        with pytest.raises(UserError, match=rf"corpora/part/shards/0000{shard}-000.* is missing"):
            reader.read([(shard, 0)])


def test_a_bucket_that_is_closed_or_out_of_reach_is_a_message(
    s3: str, monkeypatch: pytest.MonkeyPatch, quick_retries: None
) -> None:
    import s3fs

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refused
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(
            UserError, match=r"s3://corpora/noise/manifest\.json cannot be read, tried 4 times.*endpoint"
        ):
            read_manifest(s3)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_kind_of_url_that_nothing_reads_is_a_message() -> None:
    with pytest.raises(UserError, match=r"nowhere://a/manifest\.json cannot be read"):
        read_manifest("nowhere://a")


# ---- HTTP, which can be made to fail


def test_ranges_are_all_that_is_fetched(server: Server, noise_corpus: Path) -> None:
    assert same(batches(server.url, last=3), batches(str(noise_corpus), last=3))
    assert server.whole_shards() == []
    assert sum(path.endswith(".tar") for path, _ in server.requests) == 96


@pytest.mark.parametrize("cached", [False, True], ids=["ranges", "cached"])
def test_errors_that_pass_leave_no_trace(
    server: Server, noise_corpus: Path, tmp_path: Path, quick_retries: None, cached: bool
) -> None:
    server.failures = 2
    settings = {"cache": str(tmp_path)} if cached else {}
    assert same(batches(server.url, last=2, **settings), batches(str(noise_corpus), last=2))


def test_errors_that_stay_end_the_run_with_the_url(server: Server, quick_retries: None) -> None:
    reader = Corpus(LoaderConfig(manifest=server.url), 0, 16, tokens).reader
    reader.read([(0, 0)])
    server.failures = 10**6
    with pytest.raises(UserError, match=rf"{server.url}/shards/00000-000\.tar cannot be read, tried 4 times.*503"):
        reader.read([(0, 1)])


def test_an_index_that_is_not_the_manifests_is_refused(server: Server, tmp_path: Path) -> None:
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


def test_a_shard_cut_short_is_a_message(server: Server, tmp_path: Path) -> None:
    server.folder = write_corpus(tmp_path, [5])
    shard = tmp_path / "shards" / "00000-000.tar"
    shard.write_bytes(shard.read_bytes()[:9000])
    for manifest in (server.url, str(tmp_path)):
        with pytest.raises(UserError, match=r"00000-000\.tar gave \d+ bytes where"):
            Corpus(LoaderConfig(manifest=manifest), 0, 16, tokens).by_sample_index(np.array([4]))


# ---- the cache


def shards_of(server: Server) -> list[ShardFile]:
    manifest = read_manifest(server.url)
    return [manifest.shard(number) for number in range(len(manifest.samples))]


def original(server: Server, shard: ShardFile) -> bytes:
    return (server.folder / shard.path.removeprefix(f"{server.url}/")).read_bytes()


def read_all(cache: ShardCache, shards: list[ShardFile], order: list[int], expected: dict[str, bytes]) -> None:
    """Exits 0 if every shard read is what it should be. For processes of their own."""
    wrong = any(cache.read(shards[n], 0, shards[n].bytes) != expected[shards[n].sha256] for n in order)
    os._exit(int(wrong))


def test_processes_share_one_fetch_of_each_shard(server: Server, noise_corpus: Path, tmp_path: Path) -> None:
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


def test_the_bound_is_kept_while_processes_compete_for_it(server: Server, tmp_path: Path) -> None:
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


def test_what_was_not_read_for_longest_goes_first(server: Server, tmp_path: Path) -> None:
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
def test_a_file_changed_by_others_is_fetched_again_not_read(server: Server, tmp_path: Path, damage: str) -> None:
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


def test_a_process_killed_while_fetching_leaves_nothing_that_is_read_or_stays(server: Server, tmp_path: Path) -> None:
    shards = shards_of(server)
    expected = {shard.sha256: original(server, shard) for shard in shards}
    cache = ShardCache(tmp_path, sum(sorted(shard.bytes for shard in shards)[-2:]))
    server.pause_seconds = 30
    process = FORK.Process(target=read_all, args=(cache, shards, [0], expected))
    process.start()
    while not server.whole_shards():
        time.sleep(0.01)
    time.sleep(0.2)
    assert list(tmp_path.glob("*.partial"))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    server.pause_seconds = 0
    for n in (2, 4, 0):
        assert cache.read(shards[n], 0, shards[n].bytes) == expected[shards[n].sha256]
    assert not list(tmp_path.glob("*.partial"))


def test_what_a_dead_process_left_is_removed_by_one_that_takes_the_same_lock(server: Server, tmp_path: Path) -> None:
    shard = shards_of(server)[0]
    (tmp_path / f"{shard.sha256[:3]}{'0' * 61}.{shard.bytes}.partial").touch()
    cache = ShardCache(tmp_path, shard.bytes + 1)  # no room for both
    assert cache.read(shard, 0, shard.bytes) == original(server, shard)
    assert [path.suffix for path in tmp_path.iterdir() if path.is_file()] == [".tar"]


def test_a_download_cut_short_is_tried_again_then_a_message(
    server: Server, tmp_path: Path, quick_retries: None
) -> None:
    shard = shards_of(server)[0]
    server.cut = 100
    with pytest.raises(UserError, match=rf"{shard.path} cannot be read, tried 4 times"):
        ShardCache(tmp_path, 10**9).read(shard, 0, 1)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_other_content_under_the_url_is_refused(server: Server, tmp_path: Path) -> None:
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
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_retries: None, reachable: bool
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


def test_a_reference_subset_does_not_fill_the_cache(server: Server, tmp_path: Path) -> None:
    """1,024 samples of 1,024 shards would fetch them all, for one image each."""
    corpus = Corpus(LoaderConfig(manifest=server.url, cache=str(tmp_path)), 0, 16, tokens)
    assert corpus.by_sample_index(np.array([3, 100, 202])).sample_index.tolist() == [3, 100, 202]
    assert server.whole_shards() == []


def test_a_batch_of_more_shards_than_are_held_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.shards.OPEN_SHARDS", 3)
    folder = write_corpus(tmp_path, [2] * 9)
    corpus = Corpus(LoaderConfig(manifest=str(folder)), 0, 16, tokens)
    for _ in range(2):
        assert corpus.by_sample_index(np.arange(18)[::-1].copy()).tokens.squeeze(1).tolist() == list(range(18))[::-1]


def test_a_folder_that_cannot_be_made_says_so(noise_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"loader\.cache: .*file cannot be made"):
        Corpus(LoaderConfig(manifest=str(noise_corpus), cache=str(tmp_path / "file")), 0, 16, tokens)


def test_a_cache_smaller_than_a_shard_says_so(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loader\.cache_gib is less than one shard"):
        batches(server.url, cache=str(tmp_path), cache_gib=1e-6)
