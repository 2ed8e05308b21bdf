"""Which ranks the others wait for, judged by their heartbeats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.health.heartbeat import Heartbeat
from pipeline.stopping import EXIT_LOST

NAMED = 8  # ranks in a message


class Suspects(NamedTuple):
    """What became of the ranks, in words, and with what status a rank that they take along should exit.

    certain: they have failed by themselves, so there is nothing to wait for.
    """

    words: str
    exit_status: int = EXIT_LOST
    certain: bool = False


def find_suspects(before: Mapping[int, Heartbeat], after: Mapping[int, Heartbeat], size: int) -> Suspects:
    """before, after: heartbeats by rank, read longer apart than two beats. size: of the world.

    The first of these that there are: ranks that failed by themselves, ranks without a sign of life, ranks that are at
    an earlier place than others, ranks that lost others.
    """
    failed = [beat for beat in after.values() if beat.failed]
    causes = [beat for beat in failed if beat.exit_status != EXIT_LOST]
    if causes:
        words = _listed([f"{beat}, ended with: {beat.failed}" for beat in causes])
        return Suspects(f"{words}. See its log", causes[0].exit_status, certain=True)
    silent = [rank for rank in range(size) if rank not in after or _is_silent(before.get(rank), after[rank])]
    if silent:
        last = [f"{after[rank]} when last heard" if rank in after else f"rank {rank}, never heard" for rank in silent]
        return Suspects(
            f"no sign of life from {_listed(last)}: the process was killed (out of memory?) or stopped, or its machine "
            "is gone. See its log"
        )
    furthest = max(beat.moves for beat in after.values())
    behind = [str(beat) for beat in after.values() if beat.moves < furthest]
    if behind:
        return Suspects(f"the others wait for {_listed(behind)}")
    if failed:
        return Suspects(_listed([f"{beat}, ended with: {beat.failed}" for beat in failed]))
    place = next(iter(after.values()))
    return Suspects(
        f"every rank is at the same place, after step {place.step}, {place.doing}: the network or a file system does "
        "not answer"
    )


def _is_silent(before: Heartbeat | None, after: Heartbeat) -> bool:
    return before is not None and before.beats == after.beats and not after.failed


def _listed(ranks: list[str]) -> str:
    more = [f"{len(ranks) - NAMED} more"] if len(ranks) > NAMED else []
    return "; ".join([*ranks[:NAMED], *more])
