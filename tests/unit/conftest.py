"""What several files of tests share: a model evaluated on a few small tasks, a planned download, stores of MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking_support import Server
from tests.unit.downloads_support import Toy, entries, planned


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model, data (`write_suite`'s three tasks) and their results in out."""
    from evaluation_support import run, write_model, write_suite

    root = tmp_path_factory.mktemp("evaluated")
    write_model(root / "model")
    write_suite(root / "data")
    run(root)
    return root


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model, data (DataComp's 40 tasks in miniature) and results of one task of every kind in out."""
    from evaluation_support import OF_EVERY_KIND, fabricated, run, write_model

    root = tmp_path_factory.mktemp("miniature")
    fabricated(root / "data")
    write_model(root / "model")
    run(root, tasks=OF_EVERY_KIND, batch_size=16)
    return root


@pytest.fixture
def work(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of `evaluated` to change."""
    return shutil.copytree(evaluated, tmp_path / "work")


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One address of each kind: SQLite, and a server before another SQLite."""
    folder = tmp_path_factory.mktemp("mlflow")
    server = Server(folder / "server", f"sqlite:///{folder}/behind.db")
    server.start()
    yield {"sqlite": f"sqlite:///{folder}/mlflow.db", "server": server.uri}
    server.kill()


@pytest.fixture(params=["sqlite", "server"])
def uri(stores: dict[str, str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of each kind in turn."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stores[request.param])
    return stores[request.param]


@pytest.fixture
def local(stores: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """SQLite."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stores["sqlite"])
    return stores["sqlite"]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """A planned corpus and its rows, downloaded well."""
    corpus, plan = planned(tmp_path)
    return corpus, plan, entries(corpus, plan, 0)
