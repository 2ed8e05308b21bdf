"""Tables written by K ranks are read back by any other number of ranks, and what is not whole is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.collectives import all_gather_slices, count_bytes, own_slice
from pipeline.engine.sharded_state import load_tables, table_files
from pipeline.errors import UserError
from tests.distributed.launch import run_ranks


def whole_tables() -> dict[str, torch.Tensor]:
    """One name begins with another's; one table has fewer rows than there are ranks."""
    pairs = torch.arange(22.0).view(11, 2)
    pairs[3, 1] = torch.nan
    return {"log_u": pairs, "log_u.tau": -torch.arange(33.0).view(11, 3), "short": torch.ones(2, 1)}


def own_rows(tables: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: table[own_slice(len(table))] for name, table in tables.items()}


def save(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in table_files(own_rows(whole_tables())).items():
        np.save(folder / name, rows)


def load(folders: list[Path]) -> list[dict[str, torch.Tensor]]:
    """What was read, gathered."""
    loaded = []
    for folder in folders:
        expected = own_rows(whole_tables())
        with count_bytes() as sent:
            own = load_tables(folder, {name: torch.zeros_like(rows) for name, rows in expected.items()})
        assert sum(sent.values()) < 100  # numbers of rows travel, no row does
        torch.testing.assert_close(own, expected, rtol=0, atol=0, equal_nan=True)
        loaded.append({name: all_gather_slices(rows, len(whole_tables()[name])) for name, rows in own.items()})
    return loaded


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders by the number of ranks that wrote them."""
    folder = tmp_path_factory.mktemp("shards")
    save(folder / "1")
    run_ranks(4, save, folder / "4")
    return {ranks: folder / str(ranks) for ranks in (1, 4)}


def test_any_number_of_ranks_reads_what_any_other_wrote(saved: dict[int, Path]) -> None:
    assert {path.name for path in saved[4].glob("log_u.?.npy")} == {f"log_u.{row}.npy" for row in (0, 2, 5, 8)}
    folders = list(saved.values())
    for result in [load(folders), *run_ranks(3, load, folders)]:
        for loaded in result:
            torch.testing.assert_close(loaded, whole_tables(), rtol=0, atol=0, equal_nan=True)


def test_no_tables_no_files(tmp_path: Path) -> None:
    assert table_files({}) == {}
    assert load_tables(tmp_path / "shards", {}) == {}


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "torn": (lambda folder: truncate(folder / "log_u.2.npy", 140), r"log_u\.2\.npy is not a whole .npy file"),
    "torn header": (lambda folder: truncate(folder / "log_u.2.npy", 20), r"log_u\.2\.npy is not a whole .npy file"),
    "empty": (lambda folder: truncate(folder / "log_u.2.npy", 0), r"log_u\.2\.npy is not a whole .npy file"),
    "first missing": (lambda folder: (folder / "log_u.0.npy").unlink(), "holds rows 2 to 11 of log_u"),
    "middle missing": (lambda folder: (folder / "log_u.2.npy").unlink(), r"log_u\.0\.npy holds 2 rows"),
    "last missing": (lambda folder: (folder / "log_u.8.npy").unlink(), "holds rows 0 to 8 of log_u"),
    "of another dataset": (
        lambda folder: np.save(folder / "log_u.8.npy", np.zeros((9, 2), np.float32)),
        "holds rows 0 to 17 of log_u.*0 to 11",
    ),
    "of another width": (
        lambda folder: np.save(folder / "log_u.8.npy", np.zeros((3, 5), np.float32)),
        r"\(5,\) each.*\(2,\) each",
    ),
    "a table missing": (
        lambda folder: remove(folder.glob("log_u.tau.*")),
        r"holds the tables \['log_u', 'short'\] and this run's objective keeps \['log_u', 'log_u.tau', 'short'\]",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_whole_is_refused_with_the_reason(saved: dict[int, Path], tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(saved[4], tmp_path / "shards")
    load([folder])
    harm, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(UserError, match=message):
        load([folder])
