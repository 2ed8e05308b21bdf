"""A pool that loses a worker ends with one message; one whose block fails drops what has not begun."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from data_prep.fabricate.pool import parallel_map
from data_prep.workers import worker_pool
from pipeline.errors import UserError


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def touch_slowly(path: Path) -> None:
    time.sleep(0.2)
    path.touch()


def test_a_killed_worker_is_a_message() -> None:
    with pytest.raises(UserError, match="a worker process was killed"), worker_pool(1) as pool:
        pool.submit(die, 0).result()
    with pytest.raises(UserError, match="a worker process was killed"):
        list(parallel_map(die, range(100), 2))


def test_a_failed_block_drops_what_has_not_begun(tmp_path: Path) -> None:
    def fail_after_the_first() -> None:
        with worker_pool(1) as pool:
            first, *_ = [pool.submit(touch_slowly, tmp_path / str(number)) for number in range(20)]
            first.result()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_the_first()
    left = sorted(tmp_path.iterdir())
    assert 0 < len(left) < 10
    time.sleep(0.5)
    assert sorted(tmp_path.iterdir()) == left, "a worker went on after the block had ended"
