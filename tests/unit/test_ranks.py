"""Ranks as processes of this machine: what they are told, whose exit status counts, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
def stop(number, frame):
    time.sleep(0.3 * rank)
    (folder / f"{rank}.saved").touch()
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop)
told = [os.environ[name] for name in ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
(folder / f"{rank}.tmp").write_text(" ".join([str(os.getpid()), *told]))
(folder / f"{rank}.tmp").rename(folder / str(rank))
how = sys.argv[2 + rank]
if how == "wait":
    time.sleep(60)
sys.exit(int(how))
"""
LAUNCH = "import sys; from pipeline.launch.ranks import run_ranks; sys.exit(run_ranks({}, sys.argv[1:], {}))"


def launch(folder: Path, *how: str, grace_seconds: float = 1.0) -> subprocess.Popen[bytes]:
    start = [sys.executable, "-c", LAUNCH.format(len(how), grace_seconds)]
    return subprocess.Popen([*start, sys.executable, "-c", SCRIPT, str(folder), *how])


def told(folder: Path, count: int) -> list[list[str]]:
    """What each rank wrote, its process id first."""
    deadline = time.monotonic() + 30
    while not all((folder / str(rank)).exists() for rank in range(count)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [(folder / str(rank)).read_text().split() for rank in range(count)]


def test_ranks_are_told_apart_and_where_to_meet(tmp_path: Path) -> None:
    assert launch(tmp_path, "0", "0", "0").wait(30) == 0
    found = told(tmp_path, 3)
    assert [entry[1:5] for entry in found] == [[str(rank), "3", "3", "127.0.0.1"] for rank in range(3)]
    assert len({entry[5] for entry in found}) == 1


@pytest.mark.parametrize(("how", "status"), [(("0", "2"), 2), (("wait", "76"), 76), (("3", "wait"), 3)])
def test_the_first_failure_counts_and_ends_the_others(tmp_path: Path, how: tuple[str, ...], status: int) -> None:
    assert launch(tmp_path, *how).wait(30) == status
    assert not any(Path(f"/proc/{entry[0]}").exists() for entry in told(tmp_path, 2))


def test_a_killed_rank_counts_as_its_signal(tmp_path: Path) -> None:
    process = launch(tmp_path, "wait", "wait")
    os.kill(int(told(tmp_path, 2)[1][0]), signal.SIGKILL)
    assert process.wait(30) == 128 + 9


def test_a_stop_reaches_all_ranks_which_take_their_time(tmp_path: Path) -> None:
    process = launch(tmp_path, "wait", "wait", "wait", "wait", grace_seconds=0.1)
    told(tmp_path, 4)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 75
    assert all((tmp_path / f"{rank}.saved").exists() for rank in range(4)), "nobody was ended while it saved"


def test_ranks_die_with_their_launcher(tmp_path: Path) -> None:
    process = launch(tmp_path, "wait", "wait")
    pids = [entry[0] for entry in told(tmp_path, 2)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
