"""The image server of a fabricated corpus, for as long as a stage downloads from it."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.errors import UserError
from pipeline.launch.children import end, last_line, start
from pipeline.launch.paths import RunPaths
from pipeline.launch.stop_signal import raise_if_stopped

START_SECONDS = 60
POLL_SECONDS = 0.1


@contextmanager
def image_server(paths: RunPaths) -> Iterator[Callable[[], None]]:
    """Serve the corpus's images on its port of localhost; yields a check that raises once the server is gone.

    Raises UserError when something else listens there: the URLs carry the port, and a stranger's answers would be
    recorded as what became of them.
    """
    port = paths.config.corpus.port
    advice = f"The URLs of this corpus carry port {port}: free it, or start over in another directory."
    if _listening(port):
        raise UserError(f"port {port} of localhost is in use by another process. {advice}")
    source = paths.config.data if paths.config.corpus.fabricate == "emoji" else paths.corpus / "source"
    command = [sys.executable, "-m", "data_prep", "serve", str(source), "--port", str(port)]
    log = paths.log("serve", 0)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as stream:
        process = start(command, stream, {**os.environ, "PYTHONUNBUFFERED": "1"})

    def check() -> None:
        if process.poll() is not None:
            raise UserError(f"the image server ended:\n  {last_line(log)}\n{advice}")

    try:
        deadline = time.monotonic() + START_SECONDS
        while not last_line(log).startswith("serving "):
            check()
            if time.monotonic() > deadline:
                raise UserError(f"the image server did not start within {START_SECONDS} s: see {log}")
            time.sleep(POLL_SECONDS)
            raise_if_stopped()
        yield check
    finally:
        end([process])


def _listening(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
