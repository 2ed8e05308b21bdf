"""One process: a hang that is only warned of, one that holds the interpreter lock, and what is left for the others."""

from __future__ import annotations

import ctypes
import logging
import os
import time
from pathlib import Path

import pytest
import torch

from pipeline.config.schema import HealthConfig
from pipeline.distributed import World
from pipeline.errors import UserError
from pipeline.health.heartbeat import Heartbeat, read_heartbeats
from pipeline.health.watchdog import PeerLost, Watchdog
from pipeline.stopping import EXIT_LOST
from tests.distributed.launch import run_ranks


def watchdog(folder: Path, *stop_on: str, size: int = 1, hang_seconds: float = 0.5) -> Watchdog:
    config = HealthConfig(stop_on=stop_on, hang_seconds=hang_seconds)  # type: ignore[arg-type]
    return Watchdog(config, folder, World(0, 0, size, torch.device("cpu")))


def test_a_hang_is_warned_of_once_until_something_moves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def wait_for_warnings(count: int) -> None:
        deadline = time.monotonic() + 60
        while len(caplog.records) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.7)  # a hang more, in which nothing new is said

    with caplog.at_level(logging.WARNING, logger="pipeline.health"), watchdog(tmp_path) as watched:
        watched.heartbeat.next("in Saving", 7)
        wait_for_warnings(1)
        watched.heartbeat.next("waiting for data", 8)
        wait_for_warnings(2)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("nothing has moved for 0.5 s (health.hang_seconds) after step 7: every rank is at the same")
    assert "after step 8, waiting for data" in second
    stacks = (tmp_path / "stacks/00000.txt").read_text()
    assert "after step 7, in Saving: no move for 0.5 s" in stacks
    assert "in wait_for_warnings" in stacks


def hold_the_lock(folder: Path) -> None:
    with watchdog(folder, "hang"):
        ctypes.PyDLL(None).sleep(1000)


def test_a_hang_that_holds_the_interpreter_lock_ends_with_its_stack(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"\{0: 1\}"):
        run_ranks(1, hold_the_lock, tmp_path, timeout_seconds=60)
    assert "in hold_the_lock" in (tmp_path / "stacks/00000.txt").read_text()


@pytest.mark.parametrize(
    ("error", "status", "noted"),
    [
        (UserError("no such corpus"), 2, "UserError: no such corpus"),
        (ValueError("oh"), 1, "ValueError: oh"),
        (RuntimeError("CUDA out of memory"), 1, "RuntimeError: CUDA out of memory"),
    ],
)
def test_why_a_rank_fails_is_left_for_the_others(tmp_path: Path, error: Exception, status: int, noted: str) -> None:
    with watchdog(tmp_path) as watched, pytest.raises(type(error), match=str(error)), watched.explaining():
        raise error
    left = read_heartbeats(tmp_path / "heartbeats", [0])[0]
    assert (left.exit_status, left.failed, left.pid) == (status, noted, os.getpid())


@pytest.mark.parametrize(("failed", "status"), [("UserError: no", 2), ("", EXIT_LOST)])
def test_a_broken_connection_is_told_as_the_loss_of_a_rank(tmp_path: Path, failed: str, status: int) -> None:
    with watchdog(tmp_path, size=2, hang_seconds=5) as watched:
        Heartbeat(1, "n1", 4711, 3, "in Saving", 9, 5, False, failed, status).write(tmp_path / "heartbeats")
        with (
            pytest.raises(PeerLost, match=r"rank 1 \(host n1, pid 4711\) after step 3") as caught,
            watched.explaining(),
        ):
            raise RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:45120")
    assert caught.value.exit_status == status
