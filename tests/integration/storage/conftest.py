"""A corpus over HTTP, and a loader that waits for nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import storage
from tests.storage_support import ShardServer


@pytest.fixture
def server(noise_corpus: Path) -> Iterator[ShardServer]:
    started = ShardServer(noise_corpus)
    thread = threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield started
    started.shutdown()
    started.server_close()
    thread.join()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_WAIT_SECONDS", 0.01)
