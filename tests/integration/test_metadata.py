"""Metadata from a hub, a local server that speaks its protocol."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_support import HubServer, running_hub

from data_prep.corpus import Corpus, CorpusDefinition
from data_prep.metadata import fetch_metadata
from pipeline import storage
from pipeline.errors import UserError

FIRST, SECOND = "1" * 40, "2" * 40
LARGE = bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(storage, "FIRST_WAIT_SECONDS", 0.01)
        one = {"data/a.parquet": LARGE, "data/b.parquet": LARGE[::-1], "README.md": b"read me"}
        server.add("owner/list", SECOND, {**one, "data/a.parquet": b"newer" * 1000})
        server.add("owner/list", FIRST, one)
        yield server


def corpus(folder: Path, **keys: object) -> Corpus:
    tree = {"name": "c", "title": "t", "licence": "l", "metadata": "metadata/**/*.parquet", **keys}
    return Corpus(folder, CorpusDefinition.model_validate(tree))


HUB = [{"repository": "owner/list", "files": ["data/*.parquet"]}]


def test_what_is_wanted_is_fetched_once_and_kept_at_its_commit(hub, tmp_path):
    given = corpus(tmp_path, hub=HUB)
    asked = fetch_metadata(given, dry_run=True)
    assert (asked["missing"], asked["bytes"]) == (2, 2 * len(LARGE))
    assert hub.got == []
    assert not (tmp_path / "metadata").exists()
    assert fetch_metadata(given)["fetched"] == 2
    assert (tmp_path / "metadata/data/a.parquet").read_bytes() == LARGE
    assert list(given.metadata_files()) == ["metadata/data/a.parquet", "metadata/data/b.parquet"]
    hub.heads["owner/list"]["main"], requests = SECOND, len(hub.got)
    again = fetch_metadata(given)
    assert (again["fetched"], again["already_there"]) == (0, 2)
    assert again["commits"] == {"owner/list@main": FIRST}
    assert len(hub.got) == requests
    (tmp_path / "metadata/data/a.parquet").unlink()
    assert fetch_metadata(given)["fetched"] == 1
    assert (tmp_path / "metadata/data/a.parquet").read_bytes() == LARGE  # of the first commit, not the branch


def test_a_pinned_revision_and_a_list_of_uids_beside(hub, tmp_path):
    parts = [{**HUB[0], "revision": SECOND}, {"repository": "owner/list", "files": ["README.md"], "into": "uids"}]
    fetch_metadata(corpus(tmp_path, hub=parts))
    assert (tmp_path / "metadata/data/a.parquet").read_bytes() == b"newer" * 1000
    assert (tmp_path / "uids/README.md").read_bytes() == b"read me"


def test_a_file_that_was_cut_off_is_continued(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 2**16)  # what it keeps is whole chunks
    hub.cut = 1_500_000
    given = corpus(tmp_path, hub=HUB)
    with contextlib.suppress(UserError):  # the hub's library tries again by itself, a few times
        fetch_metadata(given)
    fetch_metadata(given)
    ranges = [wanted for name, wanted in hub.got if name == "data/a.parquet" and wanted]
    assert any(not wanted.startswith("bytes=0-") for wanted in ranges)
    assert (tmp_path / "metadata/data/a.parquet").read_bytes() == LARGE


def test_what_arrives_otherwise_than_the_hub_says_is_removed(hub, tmp_path):
    hub.corrupt = True
    with pytest.raises(UserError, match=r"data/a\.parquet of owner/list did not arrive as the hub has it"):
        fetch_metadata(corpus(tmp_path, hub=HUB))
    assert not (tmp_path / "metadata/data/a.parquet").exists()
    hub.corrupt = False
    assert fetch_metadata(corpus(tmp_path, hub=HUB))["fetched"] == 2


def test_terms_that_have_to_be_accepted_are_named(hub, tmp_path):
    hub.gated = True
    with pytest.raises(UserError, match=r"(?s)wants its terms to be accepted.*datasets/owner/list.*ask Alice"):
        fetch_metadata(corpus(tmp_path, hub=HUB, by_hand="ask Alice"))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"repository": "owner/absent", "files": ["*"]}, "the hub has no data set owner/absent"),
        ({"repository": "owner/list", "revision": "3" * 40}, "no such revision"),
        ({"repository": "owner/list", "files": ["*.csv"]}, r"has no file like \*\.csv"),
    ],
)
def test_what_the_hub_does_not_have_is_said(hub, tmp_path, part, message):
    with pytest.raises(UserError, match=message):
        fetch_metadata(corpus(tmp_path, hub=[part]))


def test_a_hub_that_is_not_there_is_a_message(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the hub does not answer for owner/list"):
        fetch_metadata(corpus(tmp_path, hub=HUB))


def test_files_at_urls_are_copied_too(hub, tmp_path):
    url = f"{hub.url}/datasets/owner/list/resolve/{FIRST}/data/a.parquet"
    given = corpus(tmp_path, urls=[url])
    assert fetch_metadata(given)["fetched"] == 1
    assert fetch_metadata(given)["fetched"] == 0
    assert (tmp_path / "metadata/a.parquet").read_bytes() == LARGE
    with pytest.raises(UserError, match="2 files would become"):
        fetch_metadata(corpus(tmp_path, urls=[url, url]))


def test_a_corpus_without_a_source_says_what_to_do_by_hand(tmp_path):
    with pytest.raises(UserError, match="made by hand:\nask Alice"):
        fetch_metadata(corpus(tmp_path, by_hand="ask Alice"))
