"""A disk that is full, read-only or broken for one rank: all ranks agree, the last good checkpoint stays."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.schema import CheckpointConfig, RunConfig
from pipeline.distributed import rank
from pipeline.engine import background
from pipeline.engine.checkpoint import Checkpointer
from pipeline.engine.resume import restore
from pipeline.engine.retention import Retention
from pipeline.engine.tags import complete_tags, find_damage
from pipeline.errors import UserError
from pipeline.tracking.jsonl import JsonlTracker
from pipeline.tracking.metrics import MetricBuffer
from pipeline.trainer import Trainer
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import config_of, digest, fit, here

MIB = 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of its own, 64 MiB; None where nothing may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def on_rank(chosen: int, *command: str) -> None:
    """Run a command on one rank, while the others wait."""
    torch.distributed.barrier()
    if rank() == chosen:
        subprocess.run(command, check=True)
    torch.distributed.barrier()


@contextmanager
def one_rank_may_not_write(folder: Path) -> Iterator[None]:
    """Files of rank 1 end at 1 MiB: EFBIG, as from a quota."""
    unlimited = (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    if rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, unlimited[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Nearly; what is free is not known beforehand, as with quotas."""
    mount = folder.parent
    left = shutil.disk_usage(mount).free - 2 * MIB
    on_rank(0, "fallocate", "-l", str(left), str(mount / "ballast"))
    usage = shutil.disk_usage
    shutil.disk_usage = lambda path: usage(path)._replace(free=2**60)
    yield
    shutil.disk_usage = usage
    on_rank(0, "rm", str(mount / "ballast"))


@contextmanager
def nearly_full(folder: Path) -> Iterator[None]:
    usage = shutil.disk_usage
    shutil.disk_usage = lambda path: usage(path)._replace(free=3 * MIB)
    yield
    shutil.disk_usage = usage


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    on_rank(0, "mount", "-o", "remount,ro", str(folder.parent))
    yield
    on_rank(0, "mount", "-o", "remount,rw", str(folder.parent))


Trouble = Callable[[Path], Any]
SAYS: dict[Trouble, str] = {  # what a message must name
    one_rank_may_not_write: "rank 1: [Errno 27] File too large",
    nearly_full: "are free",
    full: "rank 0: [Errno 28] No space left on device",
    read_only: "Read-only file system",
}


def save_through(trainer: Trainer, folder: Path, trouble: Trouble) -> dict[str, Any]:
    """Saves at steps 1, 2 and 3, with the trouble at 2; then the same with a stop at it."""
    found: dict[str, Any] = {}
    for policy in ("continue", "stop"):
        metrics = MetricBuffer()
        config = CheckpointConfig(on_failure=policy)
        saver = Checkpointer(folder / policy, config, Retention(2, None, 12, 203), here(), metrics)

        def save_last(step: int, saver: Checkpointer = saver) -> None:
            trainer.engine.step_number = step
            saver.save(trainer.engine, {"step": step})
            saver.finish()  # at the end of a run nothing goes on, whatever the policy

        save_last(1)
        with trouble(folder / policy), pytest.raises(UserError) as caught:
            save_last(2)
        torch.distributed.barrier()
        found[policy] = {
            "said": str(caught.value),
            "failures": metrics.flush()["checkpoint/failures"],
            "tags": complete_tags(folder / policy),
            "damage": find_damage(folder / policy / "step-00000001"),
        }
        save_last(3)
        found[policy]["restored"] = restore(trainer.engine, folder / policy)["step"]
        found[policy]["files"] = sorted(path.name for path in (folder / policy).iterdir())
        torch.distributed.barrier()
        if rank() == 0:
            shutil.rmtree(folder / policy)
        torch.distributed.barrier()
    return found


def endure(config: RunConfig, folder: Path, disk: Path | None) -> dict[str, Any]:
    trainer = Trainer(config, folder / "train", here())
    found = {}
    for trouble in SAYS:
        if disk is None and trouble in (full, read_only):
            continue
        found[trouble.__name__] = save_through(trainer, disk or folder, trouble)
    return found


def test_all_ranks_agree_on_a_save_that_failed(noise_corpus: Path, tmp_path: Path, disk: Path | None) -> None:
    by_rank = run_ranks(2, endure, config_of(noise_corpus), tmp_path, disk, timeout_seconds=120)
    assert by_rank[0] == by_rank[1]
    for trouble, expected in SAYS.items():
        for policy, found in by_rank[0].get(trouble.__name__, {}).items():
            assert "could not be written" in found["said"]
            assert expected in found["said"]
            assert ("checkpoint.on_failure=continue" in found["said"]) == (policy == "stop")
            assert found["failures"] == 1
            assert (found["tags"], found["damage"]) == (["step-00000001"], None)
            assert found["restored"] == 3
            assert found["files"] == ["latest", "step-00000001", "step-00000003"]
    if disk is None:
        pytest.skip("nothing may be mounted here: not run on a full and on a read-only file system")


class KilledWhilePublishing(JsonlTracker):
    """The save of step 6 is not published while step 7 is made and logged; then kill -9."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, 0)
        self._publish, self._begun = background.publish, threading.Event()
        background.publish = self._stuck

    def log(self, metrics: Any, step: int, samples_seen: int) -> None:
        super().log(metrics, step, samples_seen)
        if step == 7:
            self._begun.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    def _stuck(self, folder: Path, tag: str, ranks: int) -> None:
        if tag == "step-00000006":
            self._begun.set()
            threading.Event().wait()
        self._publish(folder, tag, ranks)


def killed_while_publishing(config: RunConfig, run_dir: Path) -> None:
    Trainer(config, run_dir / "train", here()).fit(KilledWhilePublishing(run_dir / "train/metrics.jsonl"))


def test_a_kill_while_a_save_is_on_its_way_leaves_the_one_before(noise_corpus: Path, tmp_path: Path) -> None:
    config = config_of(noise_corpus, "train.log_every_steps=1")
    with pytest.raises(RuntimeError, match=r"exit code.*-9"):
        run_ranks(1, killed_while_publishing, config, tmp_path / "killed")
    checkpoints = tmp_path / "killed/train/checkpoints"
    assert complete_tags(checkpoints) == ["step-00000003"]
    assert (checkpoints / ".step-00000006.tmp/part-00000.json").is_file()
    (resumed,) = run_ranks(1, fit, config, tmp_path / "killed")
    assert resumed["started_at"] == 3
    (whole,) = run_ranks(1, fit, config, tmp_path / "whole")
    assert digest(resumed["weights"]) == digest(whole["weights"])
    assert resumed["order"] == whole["order"]
    assert not list(checkpoints.glob(".step*"))
