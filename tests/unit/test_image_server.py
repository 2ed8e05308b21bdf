"""One image server per machine, shared by whatever downloads, alive as long as any of that."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from chain_support import fake_run

from pipeline.errors import UserError
from pipeline.launch.image_server import image_server
from pipeline.launch.paths import RunPaths
from pipeline.launch.ports import free_port
from pipeline.locks import is_held
from tests.conftest import image_bytes

USER = """
import sys
from pathlib import Path
from test_image_server import paths_of
from pipeline.launch.image_server import image_server
with image_server(paths_of(Path(sys.argv[1]), int(sys.argv[2]))) as check:
    print("ready", flush=True)
    sys.stdin.read()
    check()
"""


def paths_of(root: Path, port: int) -> RunPaths:
    config = fake_run(root).paths.config
    corpus = config.corpus.model_copy(update={"fabricate": "scenes", "port": port})
    return RunPaths(root, config.model_copy(update={"corpus": corpus}))


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    found = paths_of(tmp_path, free_port())
    (found.corpus / "source").mkdir(parents=True)
    (found.corpus / "source/1.png").write_bytes(image_bytes(1))
    return found


def user(paths: RunPaths) -> subprocess.Popen[str]:
    where = [str(paths.root), str(paths.config.corpus.port)]
    command = [sys.executable, "-c", USER, *where]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]


def answers(paths: RunPaths) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{paths.config.corpus.port}/1.png", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(paths: RunPaths) -> bool:
    return is_held(next(paths.stages.glob("serve.*.alive")))


def test_it_outlives_who_started_it_and_ends_with_the_last(paths: RunPaths) -> None:
    first, second = user(paths), user(paths)
    ready(first)
    ready(second)
    first.kill()
    first.communicate()
    time.sleep(0.3)
    assert answers(paths)
    assert second.poll() is None
    _, said = second.communicate("", timeout=30)
    assert second.returncode == 0, said
    wait_for(lambda: not alive(paths))
    assert not answers(paths)
    with image_server(paths) as check:
        assert answers(paths), "a new one, at once"
        check()
    wait_for(lambda: not alive(paths))


def test_a_server_that_died_is_noticed(paths: RunPaths) -> None:
    with image_server(paths) as check:
        check()
        listening = f":{paths.config.corpus.port:04X} "
        assert any(listening in line for line in Path("/proc/net/tcp").read_text().splitlines())
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = entry.read_bytes()
            except OSError:
                continue
            if b"serve" in line and str(paths.root).encode() in line:
                subprocess.run(["kill", "-9", entry.parent.name], check=True)
        wait_for(lambda: not alive(paths))
        with pytest.raises(UserError, match="the image server ended"):
            check()


def test_a_strangers_server_is_not_taken_for_ours(paths: RunPaths, tmp_path: Path) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", paths.config.corpus.port))
        stranger.listen()
        with (
            pytest.raises(UserError, match=f"port {paths.config.corpus.port} of localhost is in use"),
            image_server(paths),
        ):
            pass
