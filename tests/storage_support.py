"""A corpus behind a web server that can be made to fail, and what a loader makes of one."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from data_prep.manifest import ShardFile, read_manifest
from pipeline.config.schema import LoaderConfig
from pipeline.data.loader import Batch, Corpus, StepPositions, build_loader


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


class ShardServer(ThreadingHTTPServer):
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
    server: ShardServer

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


def shards_of(server: ShardServer) -> list[ShardFile]:
    manifest = read_manifest(server.url)
    return [manifest.shard(number) for number in range(len(manifest.samples))]


def original(server: ShardServer, shard: ShardFile) -> bytes:
    return (server.folder / shard.path.removeprefix(f"{server.url}/")).read_bytes()
