"""Corpora, metadata and uploads in a real S3 server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner, Result

from data_prep.cli import main as prepare
from data_prep.corpus import Corpus as PreparedCorpus
from data_prep.corpus import CorpusDefinition
from data_prep.derive import derive
from data_prep.manifest import read_manifest
from data_prep.metadata import fetch_metadata
from data_prep.upload import upload_corpus
from pipeline.config.schema import LoaderConfig
from pipeline.data.loader import Corpus
from pipeline.errors import UserError
from pipeline.storage import sizes
from tests.storage_support import batches, same, tokens


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
