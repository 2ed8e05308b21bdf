"""Sites and file systems that answer otherwise than the documentation has it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chain_support import fake_run

from pipeline.config.cluster import Resources
from pipeline.config.loader import load_recipe
from pipeline.config.schema import HealthConfig
from pipeline.errors import UserError
from pipeline.health.watchdog import Watchdog
from pipeline.launch.settle import settle
from pipeline.launch.slurm import commands, dry_run
from pipeline.locks import exclusive, is_held, shared, taking_turns
from pipeline.report.compare.find import find_runs

LINE = "12|3|RUNNING|None|n[1-2]|demo-train-0123abcd"


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Have one of SLURM's commands print what is given, its bytes as latin-1."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def stand_in(name: str, text: str, status: int = 0) -> None:
        (tmp_path / f"{name}.txt").write_bytes(text.encode("latin-1"))
        (tmp_path / name).write_text(f"#!/bin/sh\ncat {tmp_path / name}.txt\nexit {status}\n")
        (tmp_path / name).chmod(0o755)

    return stand_in


@pytest.mark.parametrize(
    "answer",
    ["123\n", "123;big\n", "Welcome to BIG.\n123\n", "sbatch: lua: qos normal\n123;big\n", "123\nnote: 1 node\n"],
)
def test_the_id_of_a_job_is_found_in_what_sbatch_says(says: Callable[..., None], answer: str) -> None:
    says("sbatch", answer)
    assert commands.sbatch(["train.sbatch"]) == "123"


@pytest.mark.parametrize("answer", ["", "Welcome\n", "Submitted batch job 123\n"])
def test_a_job_without_an_id_is_not_forgotten(says: Callable[..., None], answer: str) -> None:
    says("sbatch", answer)
    with pytest.raises(UserError, match=r"told no id of it.*Look for it with squeue"):
        commands.sbatch(["train.sbatch"])


def test_lines_of_squeue_that_are_no_jobs_are_passed_over(says: Callable[..., None]) -> None:
    says("squeue", f"*** maintenance | on Friday ***\n\n  \n12|3|PENDING\n{LINE}\r\n{LINE}\xff\n")
    assert [(q.name, q.state, q.nodes) for q in commands.queue(0)] == [("12_3", "RUNNING", "n[1-2]")] * 2


def test_a_controller_that_is_away_is_not_a_job_that_is_gone(says: Callable[..., None]) -> None:
    says("scontrol", "slurm_load_jobs error: Invalid job id specified", 1)
    assert commands.told("12_3") is None
    says("scontrol", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)", 1)
    with pytest.raises(UserError, match="Unable to contact"):
        commands.told("12_3")


def test_a_command_that_fails_without_a_word_is_told_with_its_status(says: Callable[..., None]) -> None:
    says("squeue", "", 3)
    with pytest.raises(UserError, match="exit status 3"):
        commands.queue(0)


@pytest.mark.parametrize("size", ["0", "(null)"])
def test_a_slurm_without_arrays_is_refused(says: Callable[..., None], size: str) -> None:
    says("scontrol", f"MaxArraySize            = {size}\n")
    with pytest.raises(UserError, match="takes no job arrays"):
        commands.max_array_size()


def test_a_dry_run_goes_on_where_slurm_does_not_answer(says: Callable[..., None], monkeypatch: Any) -> None:
    monkeypatch.setattr(commands, "TIMEOUT_SECONDS", 0)
    says("sbatch", "")
    assert "did not answer" in commands.test(["train.sbatch"])


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [("gpu", 1), ("gpu:8", 8), ("gpu:h100:8", 8), ("gpu:h100", 1), ("tmpfs:1,gpu:4", 4), ("gres/gpu:2", 2),
     ("gpu:a100:4(S:0-1)", 4), ("gpu:a:1,gpu:b:2", 3), ("shard:2", 0), (None, 0)],
)  # fmt: skip
def test_gpus_of_a_node_as_sites_write_them(gres: str | None, gpus: int) -> None:
    assert dry_run._gpus(Resources(gres=gres)) == gpus


def test_a_closed_output_is_nobody_to_write_for(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    command = f"{sys.executable} -m pipeline status {run.paths.root} >&-"
    ended = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("lock", [exclusive, taking_turns, shared], ids=lambda lock: lock.__name__)
def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: Any) -> None:
    def refuse(stream: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = rf"{tmp_path}/\.lock cannot be locked \(No locks available\): the file system has to support flock"
    with pytest.raises(UserError, match=said), lock(tmp_path / ".lock", *(["it"] if lock is exclusive else [])):
        pass
    with pytest.raises(UserError, match=said):
        is_held(tmp_path / ".lock")


def test_a_folder_that_nobody_may_look_into_hides_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "theirs")
    assert [run.folder.name for run in find_runs([tmp_path])] == ["mine"]


def test_ranks_that_are_no_more_do_not_say_that_the_run_failed(tmp_path: Path) -> None:
    beats = tmp_path / "heartbeats"
    beats.mkdir()
    for rank in range(4):
        (beats / f"{rank:05d}.json").write_text(json.dumps({"failed": "lost"}))
    world: Any = SimpleNamespace(rank=0, size=2)
    with Watchdog(HealthConfig(), tmp_path, world):
        assert sorted(path.name for path in beats.iterdir()) == ["00000.json", "00001.json"]


def test_a_task_that_is_not_there_is_refused_before_anything_is_planned(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tasks.yaml").write_text(
        "birds: {kind: classification, title: Birds, size: 4, classes: 2, main_metric: acc1, chance: 0.5}\n"
    )
    given = ["corpus.fabricate=null", f"evaluate.data={tmp_path / 'data'}"]
    with pytest.raises(UserError, match=r"no task 'brids'; tasks\.yaml has birds"):
        settle(load_recipe("demo", [*given, "evaluate.tasks=[brids]"]), tmp_path / "run")
    settle(load_recipe("demo", [*given, "evaluate.tasks=[birds]"]), tmp_path / "run")
