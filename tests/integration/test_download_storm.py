"""kill -9, forty times at seeded moments of download, verify, retry, manifest and subset: the two corpora end as if
nothing had happened, and no manifest that was there in between listed a torn shard.

pytest -m long tests/integration/test_download_storm.py
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.manifest import read_manifest
from pipeline.errors import UserError
from pipeline.files import read_json, sha256_file
from tests.hostile import encoded

ROWS, TASKS, SAMPLES_PER_SHARD, KILLS = 240, 3, 20, 40


class Handler(BaseHTTPRequestHandler):
    """Every picture takes a moment; every seventh fails until the server is mended."""

    server: Web

    def do_GET(self) -> None:
        number = int(self.path[1:])
        time.sleep(0.03)
        failing = number % 7 == 0 and not self.server.mended
        body = b"" if failing else encoded("JPEG", (60 + number, 50))
        self.send_response(500 if failing else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Web(ThreadingHTTPServer):
    daemon_threads = True
    mended = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed are the normal case."""


@pytest.fixture
def web() -> Iterator[Web]:
    with Web(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


FIRST = (("download", "web", "--retries", "0"), ("verify", "web", "--processes", "2"), ("manifest", "web"))
SUBSET = ("subset", "web", "--where", "original_width > 120", "--out", "part", "--samples-per-shard", "3")
SECOND = (("retry", "web", "--causes", "5xx"), *FIRST[1:], SUBSET)


def plan(root: Path, web: Web) -> None:
    folder = root / "web"
    (folder / "metadata").mkdir(parents=True)
    fetch = {"allow_private": True, "threads": 4, "processes": 2}
    facts = {"name": "web", "title": "A web", "licence": "CC0-1.0", "fetch": fetch}
    (folder / "corpus.yaml").write_text(yaml.safe_dump(facts))
    urls = [f"http://127.0.0.1:{web.server_port}/{number}" for number in range(ROWS)]
    table = {"url": urls, "caption": [f"picture {number}" for number in range(ROWS)]}
    pq.write_table(pa.table(table), folder / "metadata/rows.parquet")
    run(root, "plan", "web", "--tasks", str(TASKS), "--samples-per-shard", str(SAMPLES_PER_SHARD))


def start(root: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "data_prep", "--root", str(root), *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)


def run(root: Path, *arguments: str) -> float:
    """Let a command be; returns the seconds it lived."""
    began = time.monotonic()
    with start(root, *arguments) as process:
        _, said = process.communicate()
    assert process.returncode == 0, said.decode()
    return time.monotonic() - began


def chain(root: Path, commands: tuple[tuple[str, ...], ...]) -> list[float]:
    return [run(root, *arguments) for arguments in commands]


def left_to_do(root: Path) -> Counter[str]:
    """How much of its work each command has not recorded as done."""
    folder = root / "web"
    done = [read_json(path)["attempts"] for path in folder.glob("download/*/done.json")]
    retried = len(list(folder.glob("download/*-1/rows.parquet")))
    verified = [read_json(path)["attempts"] for path in folder.glob("verify/*.json")]
    return Counter(
        download=TASKS - len(done),
        retry=TASKS - (done.count(2) if retried else 0),
        verify=TASKS - sum(len(attempts) == max(done, default=0) for attempts in verified),
        subset=1 - (root / "part/manifest.json").exists(),
    )


def kill_once(
    draw: random.Random,
    root: Path,
    commands: tuple[tuple[str, ...], ...],
    victim: int,
    seconds: float,
    hit: Counter[str],
) -> None:
    """Run the commands in order; number `victim` is killed after so long, or before it ends."""
    chain(root, commands[:victim])
    while True:
        seconds *= 0.8  # it may have less left to do than that
        with start(root, *commands[victim]) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                if draw.random() < 0.5:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()  # the workers must follow by themselves
                process.wait()
                hit[commands[victim][0]] += 1
                return
            assert process.stderr is not None
            assert process.returncode == 0, process.stderr.read().decode()


def assert_whole(root: Path) -> None:
    """Whatever manifests are there list shards as they are."""
    for folder in (root / "web", root / "part"):
        try:
            rows = read_manifest(folder).table.to_pylist()
        except UserError:
            continue
        for row in rows:
            assert sha256_file(folder / row["path"]) == row["sha256"]


def content(root: Path) -> dict[str, str]:
    """What is published, and every file among the shards."""
    found = [path for pattern in ("*/manifest.*", "*/shards/*") for path in root.glob(pattern)]
    return {str(path.relative_to(root)): sha256_file(path) for path in found}


def uids(root: Path) -> dict[str, str]:
    rows = [
        row for item in range(TASKS) for row in pq.read_table(root / f"web/outcomes/{item:05d}.parquet").to_pylist()
    ]
    return {row["uid"]: row["outcome"] for row in rows}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_kills_change_nothing(web: Web, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    plan(whole, web)
    plan(killed, web)
    draw, hit, midway = random.Random(11), Counter[str](), Counter[str]()
    for mended, commands in ((False, FIRST), (True, SECOND)):
        web.mended = mended
        lives = chain(whole, commands)  # on this machine, now: a fixed guess would kill nothing on a faster one
        # Command by command, and of each the early kills first, so that there is something left to do for the others.
        victims = sorted(number % len(commands) for number in range(KILLS // 2))
        for number, victim in enumerate(victims):
            share = (number - victims.index(victim) + draw.random()) / victims.count(victim)
            kill_once(draw, killed, commands, victim, share * lives[victim], hit)
            assert_whole(killed)
            midway += Counter({commands[victim][0]: 1}) & left_to_do(killed)
        chain(killed, commands)
        assert content(killed) == content(whole)
        assert uids(killed) == uids(whole)
    assert hit.total() == KILLS
    assert hit.keys() == {command for command, *_ in FIRST + SECOND}, hit
    assert midway.keys() == left_to_do(killed).keys(), midway  # of `manifest` a moment's work is hard to hit
    print(f"killed {dict(hit)}, of these with work left to do {dict(midway)}")
    assert set(uids(whole).values()) == {"ok"}
    assert not list(killed.rglob("*.tmp"))
