"""The launch helper shows what went wrong on a rank, ends a hang, and leaves no process behind."""

import os
import time

import pytest
import torch

from pipeline.collectives import all_gather
from pipeline.distributed import rank, world_size
from tests.distributed.launch import run_ranks


def identity(value):
    return rank(), world_size(), os.getpid(), value


def fail_on_one():
    if rank() == 1:
        raise ValueError("told to fail")
    all_gather(torch.ones(1))


def hang(folder):
    (folder / f"{rank()}.pid").write_text(str(os.getpid()))
    time.sleep(60)


def exit_early():
    os._exit(7)


def test_results_come_in_rank_order():
    results = run_ranks(3, identity, torch.ones(2))
    assert [(by, size) for by, size, _, _ in results] == [(0, 3), (1, 3), (2, 3)]
    assert len({pid for _, _, pid, _ in results}) == 3
    assert all(torch.equal(value, torch.ones(2)) for *_, value in results)


def test_an_exception_on_a_rank_is_shown():
    with pytest.raises(RuntimeError, match=r"rank 1: Traceback[\s\S]*ValueError: told to fail"):
        run_ranks(2, fail_on_one)


def test_a_hang_is_ended_and_nothing_is_left_behind(tmp_path):
    with pytest.raises(RuntimeError, match=r"ranks \[0, 1\] did not end within 3 s"):
        run_ranks(2, hang, tmp_path, timeout_seconds=3)
    for path in tmp_path.glob("*.pid"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_a_death_without_exception_is_reported():
    with pytest.raises(RuntimeError, match=r"ranks died .*: \{0: 7"):
        run_ranks(1, exit_early)
