"""The image server of a fabricated corpus, for as long as any element on this machine downloads from it.

The first element that needs it starts it, all share it, and it ends by itself when the last one has ended, however
that ends: users hold one lock file together, and the server waits to have it alone. The server's own lock, which it
inherits, says that it lives.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pipeline.errors import UserError
from pipeline.launch.children import last_line
from pipeline.launch.paths import RunPaths
from pipeline.locks import is_held, shared, taking_turns

START_SECONDS = 60
POLL_SECONDS = 0.05


@contextmanager
def image_server(paths: RunPaths, alone: bool = False) -> Iterator[Callable[[], None]]:
    """Serve the corpus's images on its port of localhost; yields a check that raises once the server is gone.

    alone: not shared with other elements, which wait for their turn: with a job ends all that it started.
    Raises UserError when something else listens there: the URLs carry the port, and a stranger's answers would be
    recorded as what became of them.
    """
    of_host = paths.stages / f"serve.{socket.gethostname()}"
    users, alive, starting = (of_host.with_name(f"{of_host.name}.{what}") for what in ("users", "alive", "starting"))
    log = paths.root / "logs" / f"{of_host.name}.log"
    advice = (
        f"The URLs of this corpus carry port {paths.config.corpus.port}: free it, or start over in another directory."
    )

    def check() -> None:
        if not is_held(alive):
            raise UserError(f"the image server ended:\n  {last_line(log)}\n{advice}")

    turn = _turn(of_host.with_name(f"{of_host.name}.turn"), alive) if alone else nullcontext()
    with turn, shared(users):
        with taking_turns(starting):
            if not is_held(alive):
                _start(paths, users, alive, log, advice)
        yield check


@contextmanager
def _turn(lock: Path, alive: Path) -> Iterator[None]:
    """Until the server has ended, not only its use."""
    with taking_turns(lock):
        try:
            yield
        finally:
            while is_held(alive):
                time.sleep(POLL_SECONDS)


def _start(paths: RunPaths, users: Path, alive: Path, log: Path, advice: str) -> None:
    port = paths.config.corpus.port
    if _listening(port):
        raise UserError(f"port {port} of localhost is in use by another process. {advice}")
    source = paths.config.data if paths.config.corpus.fabricate == "emoji" else paths.corpus / "source"
    command = [
        sys.executable,
        "-m",
        "data_prep",
        "serve",
        str(source),
        "--port",
        str(port),
        "--while-locked",
        str(users),
    ]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as stream, open(alive, "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # a signal to the element that happens to be the first is none to the others
            pass_fds=(held.fileno(),),
        )
    deadline = time.monotonic() + START_SECONDS
    while not last_line(log).startswith("serving "):
        if process.poll() is not None:
            raise UserError(f"the image server ended:\n  {last_line(log)}\n{advice}")
        if time.monotonic() > deadline:
            process.kill()
            raise UserError(f"the image server did not start within {START_SECONDS} s: see {log}")
        time.sleep(POLL_SECONDS)


def _listening(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
