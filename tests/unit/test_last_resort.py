"""faulthandler's one timer serves several: the earliest deadline counts, whoever sets his last."""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.health.last_resort import clear_deadline, set_deadline
from tests.distributed.launch import run_ranks

FAR = 1000.0


def held(folder: Path, deadlines: list[tuple[str, float, bool]], cleared: str) -> None:
    """Sets them in order, clears one, and then lets no thread of Python run for a while."""
    with ExitStack() as files:
        for owner, seconds, exits in deadlines:
            set_deadline(owner, seconds, exits, files.enter_context(open(folder / owner, "w")))
        clear_deadline(cleared)
        ctypes.PyDLL(None).sleep(4)
        clear_deadline("soon")
        clear_deadline("far")


SOON_FAR = [("soon", 1.0, True), ("far", FAR, True)]


@pytest.mark.parametrize("deadlines", [SOON_FAR, SOON_FAR[::-1]])
def test_the_earliest_counts(tmp_path: Path, deadlines: list[tuple[str, float, bool]]) -> None:
    with pytest.raises(RuntimeError, match=r"exit code\): {0: 1}"):
        run_ranks(1, held, tmp_path, deadlines, "nobody")
    assert "in held" in (tmp_path / "soon").read_text()
    assert (tmp_path / "far").read_text() == ""


def test_one_that_is_cleared_is_over_and_leaves_the_others(tmp_path: Path) -> None:
    run_ranks(1, held, tmp_path, SOON_FAR, "soon")
    assert (tmp_path / "soon").read_text() == ""
    with pytest.raises(RuntimeError, match=r"exit code\): {0: 1}"):
        run_ranks(1, held, tmp_path, SOON_FAR[::-1], "far")


def test_showing_the_stacks_is_no_reason_to_go_on(tmp_path: Path) -> None:
    """The timer fires once while the lock is held: it must not be spent on a deadline that only shows them."""
    with pytest.raises(RuntimeError, match=r"exit code\): {0: 1}"):
        run_ranks(1, held, tmp_path, [("soon", 2.0, True), ("far", 0.5, False)], "nobody")


def test_one_alone_may_only_show_the_stacks(tmp_path: Path) -> None:
    run_ranks(1, held, tmp_path, [("far", 0.5, False)], "nobody")
    assert "in held" in (tmp_path / "far").read_text()
