"""A second command on a run that is under way is refused on every rank, and leaves no trace of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.schema import RunConfig
from pipeline.errors import UserError
from pipeline.health.heartbeat import Heartbeat
from pipeline.locks import exclusive
from pipeline.training import train
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import config_of


def refusal(config: RunConfig, run_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        train(config, run_dir)
    return str(caught.value)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_command_leaves_the_firsts_files_as_they_are(noise_corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "train"
    with exclusive(folder / ".lock", str(folder)):
        for rank in (0, 1):
            (folder / "heartbeats").mkdir(exist_ok=True)
            Heartbeat(rank, "n1", 4711 + rank, 412, "in a training step", 9, 5).write(folder / "heartbeats")
        before = files(folder)
        said = run_ranks(2, refusal, config_of(noise_corpus), tmp_path)
        assert files(folder) == before
    assert said[0] == said[1]
    assert f"{folder} is in use by process" in said[0]
