"""Metadata from a hub: a local server that speaks as much of the Hugging Face hub's HTTP as its library asks for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from data_prep.corpus import Corpus, CorpusDefinition
from data_prep.metadata import fetch_metadata
from pipeline import storage
from pipeline.errors import UserError

FIRST, SECOND = "1" * 40, "2" * 40
LARGE = bytes(range(256)) * 8192  # 2 MiB


class HubServer(ThreadingHTTPServer):
    """Data set `owner/list` with two commits. files: by commit, path to content. A large file has a sha256."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        one = {"data/a.parquet": LARGE, "data/b.parquet": LARGE[::-1], "README.md": b"read me"}
        self.commits = {FIRST: one, SECOND: {**one, "data/a.parquet": b"newer" * 1000}}
        self.main = FIRST
        self.gated = False
        self.cut = 0  # so many bytes of the next large answer are sent, and no more
        self.corrupt = False
        self.got: list[tuple[str, str | None]] = []  # path and range of each GET of a file

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, _ = self.path.partition("?")
        listing = re.fullmatch(r"/api/datasets/owner/list/revision/(.*)", path)
        file = re.fullmatch(r"/datasets/owner/list/resolve/([^/]*)/(.*)", path)
        if self.server.gated:
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        elif listing and (commit := self._commit(listing[1])):
            self._answer(200, json.dumps(self._listing(commit)).encode(), {"Content-Type": "application/json"})
        elif file and (commit := self._commit(file[1])) and file[2] in self.server.commits[commit]:
            self._file(commit, file[2])
        else:
            code = "RevisionNotFound" if listing or file else "RepoNotFound"
            self._answer(404, b"{}", {"X-Error-Code": code})

    def _commit(self, revision: str) -> str | None:
        commit = self.server.main if revision == "main" else revision
        return commit if commit in self.server.commits else None

    def _listing(self, commit: str) -> dict[str, object]:
        siblings = []
        for name, content in self.server.commits[commit].items():
            entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
            if name.endswith(".parquet"):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"id": "owner/list", "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0}

    def _file(self, commit: str, name: str) -> None:
        content = self.server.commits[commit][name]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        status = 200
        if self.command == "GET":
            wanted = self.headers.get("Range")
            self.server.got.append((name, wanted))
            if self.server.corrupt:
                content = content[:-1] + b"!"
            if wanted and (first := int(re.fullmatch(r"bytes=(\d+)-.*", wanted)[1])):
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
                content, status = content[first:], 206
        self._answer(status, content, headers)

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            if self.server.cut and len(content) > self.server.cut:
                content, self.server.cut, self.close_connection = content[: self.server.cut], 0, True
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(storage, "FIRST_WAIT_SECONDS", 0.01)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


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
    hub.main, requests = SECOND, len(hub.got)
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
