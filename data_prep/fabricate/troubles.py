"""What goes wrong on the web, and how often: the rows of a fabricated corpus that misbehave."""

from __future__ import annotations

from typing import NamedTuple

from data_prep.serve import Behaviour

TROUBLED_SHARE = 0.05  # of the scenes; these rows come on top of them
DUPLICATE = "duplicate"  # the same row twice: a trouble of the list, not of the server


class Trouble(NamedTuple):
    """One kind. weight: how common. has_image: whether a file lies behind the URL. most: rows at any size."""

    name: str
    weight: float
    behaviour: Behaviour
    has_image: bool = True
    most: int | None = None


TROUBLES = (
    Trouble("not_found", 0.24, Behaviour(status=404), has_image=False),
    Trouble("gone", 0.10, Behaviour(status=410), has_image=False),
    Trouble("error_then_ok", 0.10, Behaviour(status=500, failures=1)),
    Trouble("server_error", 0.08, Behaviour(status=500), has_image=False),
    Trouble("slow", 0.08, Behaviour(delay_seconds=0.5)),
    # Every retry waits for the whole time-out, so a few are enough.
    Trouble("too_slow", 0.02, Behaviour(delay_seconds=8.0), most=3),
    Trouble("truncated", 0.08, Behaviour(truncated=True)),
    Trouble("html", 0.08, Behaviour(html=True), has_image=False),
    Trouble("redirect", 0.08, Behaviour(status=302)),  # each row to its own file
    Trouble("opt_out", 0.08, Behaviour(headers={"X-Robots-Tag": "noai"})),
)
_DUPLICATE_WEIGHT = 0.06


def troubled_rows(scenes: int) -> list[Trouble]:
    """One entry per troubled row for a corpus of `scenes`: at least one of each kind."""
    rows = []
    for trouble in TROUBLES:
        count = max(1, round(scenes * TROUBLED_SHARE * trouble.weight))
        rows += [trouble] * min(count, trouble.most or count)
    return rows


def duplicate_rows(scenes: int) -> int:
    """How many rows are listed twice."""
    return max(1, round(scenes * TROUBLED_SHARE * _DUPLICATE_WEIGHT))
