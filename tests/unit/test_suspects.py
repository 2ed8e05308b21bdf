"""Who keeps the others waiting, from heartbeats; what torch's words about lost processes mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.health.broken import connection_is_lost, worker_died
from pipeline.health.heartbeat import Heartbeat, read_heartbeats
from pipeline.health.straggler import compare
from pipeline.health.suspects import Suspects, find_suspects
from pipeline.stopping import EXIT_LOST


def beat(rank: int, moves: int = 9, beats: int = 5, failed: str = "", status: int = 0, step: int = 3) -> Heartbeat:
    return Heartbeat(rank, f"n{rank}", 100 + rank, step, "in Saving", moves, beats, False, failed, status)


def suspects(size: int, before: list[Heartbeat], after: list[Heartbeat]) -> Suspects:
    return find_suspects({b.rank: b for b in before}, {b.rank: b for b in after}, size)


def alive(*ranks: int) -> list[Heartbeat]:
    return [beat(rank, beats=4) for rank in ranks]


def test_a_rank_that_failed_comes_first_and_gives_its_status() -> None:
    after = [beat(0), beat(1, beats=4), beat(2, failed="UserError: no", status=2), beat(3, failed="lost", status=76)]
    found = suspects(4, alive(0, 1, 2, 3), after)
    assert found.words == "rank 2 (host n2, pid 102) after step 3, in Saving, ended with: UserError: no. See its log"
    assert (found.exit_status, found.certain) == (2, True)


def test_a_rank_that_beats_no_more_or_never_did_comes_next() -> None:
    found = suspects(4, alive(0, 1, 2), [beat(0), beat(1, beats=4), beat(2, moves=7)])
    assert "rank 1 (host n1, pid 101) after step 3, in Saving when last heard; rank 3, never heard" in found.words
    assert "rank 2" not in found.words
    assert (found.exit_status, found.certain) == (EXIT_LOST, False)


def test_then_those_that_are_behind_and_those_that_lost_others() -> None:
    found = suspects(3, alive(0, 1, 2), [beat(0), beat(1, moves=8, step=2), beat(2, failed="lost", status=76)])
    assert found.words == "the others wait for rank 1 (host n1, pid 101) after step 2, in Saving"
    found = suspects(2, alive(0, 1), [beat(0), beat(1, failed="a hang", status=76)])
    assert found.words.endswith("in Saving, ended with: a hang")
    assert (
        "every rank is at the same place, after step 3, in Saving" in suspects(2, alive(0, 1), [beat(0), beat(1)]).words
    )


def test_many_ranks_are_named_in_part() -> None:
    words = suspects(100, [], [beat(0)]).words
    assert "rank 8, never heard; 91 more: the process" in words


def test_a_heartbeat_is_read_as_it_was_written_whatever_was_there_before(tmp_path: Path) -> None:
    mine = beat(7, failed="x" * 400)
    for failed in ("x" * 400, "é" * 100, ""):
        mine.failed = failed
        mine.write(tmp_path)
        assert read_heartbeats(tmp_path, range(9)) == {7: mine}
    (tmp_path / "00008.json").write_text("{")
    assert list(read_heartbeats(tmp_path, range(9))) == [7]
    mine.write(tmp_path / "nowhere")  # no error


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", ["pid 12) was killed (Killed)", "loader.workers"]),
        (
            "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit.",
            ["pid 12) was killed (Bus error)", "/dev/shm"],
        ),
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", ["pid 12, 13) ended unexpectedly", "memory"]),
    ],
)
def test_a_worker_that_died_is_explained(text: str, parts: list[str]) -> None:
    said = str(worker_died(RuntimeError(text)))
    for part in parts:
        assert part in said


def test_other_errors_are_left_as_they_are() -> None:
    for text in ("CUDA out of memory", "mat1 and mat2 shapes cannot be multiplied"):
        assert worker_died(RuntimeError(text)) is None
        assert not connection_is_lost(RuntimeError(text))
    assert connection_is_lost(RuntimeError("DataLoader worker (pid 12) is killed by signal: Terminated. "))
    assert connection_is_lost(RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:42"))


def test_the_slowest_rank_is_compared_with_the_lower_median() -> None:
    """Of two ranks the median is the faster one: else neither could ever be twice as slow."""
    assert compare([(1.0, 4.0), (3.0, 4.0)]) == {
        "ranks/slowest": 1.0,
        "ranks/own_seconds_slowest": 3.0,
        "ranks/own_seconds_median": 1.0,
        "ranks/waiting_share": 0.5,
    }
