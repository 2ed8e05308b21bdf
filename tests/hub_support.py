"""A local server that speaks as much of the Hugging Face hub's HTTP as its library asks for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class HubServer(ThreadingHTTPServer):
    """Data sets by name: by commit, path to content. heads: the commit of each one's branches. What is large (not a
    text file) is told with a sha256."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.heads: dict[str, dict[str, str]] = {}
        self.gated = False
        self.cut = 0  # so many bytes of the next large answer are sent, and no more
        self.corrupt = False
        self.stall = threading.Event()  # while it is set, large answers stop after 1.5 MB until the client is gone
        self.got: list[tuple[str, str | None]] = []  # path and range of each GET of a file

    def add(self, repository: str, commit: str, files: dict[str, bytes], branch: str = "main") -> None:
        """Another commit, the newest of its branch."""
        self.repositories.setdefault(repository, {})[commit] = files
        self.heads.setdefault(repository, {})[branch] = commit

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        asked_path = unquote(self.path.partition("?")[0])
        path = asked_path.removeprefix("/cdn")
        listing = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/revision/(.*)", path)
        file = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]*)/(.*)", path)
        asked = listing or file
        commits = self.server.repositories.get(asked[1]) if asked else None
        commit = self.server.heads[asked[1]].get(asked[2], asked[2]) if asked and commits else None
        if self.server.gated:
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        elif not asked or commits is None:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif commit not in commits:
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif listing:
            content = json.dumps(self._listing(asked[1], commit, commits[commit])).encode()
            self._answer(200, content, {"Content-Type": "application/json"})
        elif file[3] in commits[commit] and is_large(file[3]) and path == asked_path:
            self._answer(302, b"", {"Location": f"{self.server.url}/cdn{self.path}"})
        elif file[3] in commits[commit]:
            self._file(commit, file[3], commits[commit][file[3]])
        else:
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    @staticmethod
    def _listing(repository: str, commit: str, files: dict[str, bytes]) -> dict[str, object]:
        siblings = []
        for name, content in files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
            if is_large(name):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"id": repository, "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0}

    def _file(self, commit: str, name: str, content: bytes) -> None:
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
            if self.server.stall.is_set() and len(content) > 1_500_000:
                self.wfile.write(content[:1_500_000])
                self.rfile.read(1)
                self.close_connection = True
                return
            if self.server.cut and len(content) > self.server.cut:
                content, self.server.cut, self.close_connection = content[: self.server.cut], 0, True
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def is_large(name: str) -> bool:
    """Whether the hub keeps the file in its large-file store, and sends who asks for it there."""
    return not name.endswith((".txt", ".md"))


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


@contextmanager
def running_hub() -> Iterator[HubServer]:
    """A hub without data sets, until the block ends."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
