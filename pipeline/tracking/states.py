"""How far the stages of a run directory are, from what they leave there: markers, attempts, the lives of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pipeline.locks import is_held
from pipeline.run_files import EVENT, MARKER
from pipeline.tracking import lives

State = Literal["scheduled", "running", "finished", "failed", "preempted"]
Event = Mapping[str, Any]
Piece = tuple[str, int]  # a stage and an element of it

# Words of attempts and lives for how they ended. Blocked: what it needs failed, and it is as if it had not begun.
_ENDED: dict[str, State] = {
    "done": "finished",
    "finished": "finished",
    "failed": "failed",
    "stopped": "preempted",
    "preempted": "preempted",
    "blocked": "scheduled",
}
_OF_THE_EVENT = {"attempt", "event", "time", "pid", "step", "samples_seen", "status", "exit_status", "reason"}


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is, or several together.

    began_at, ended_at: unix seconds. told: what its attempts said of themselves (host, nodes, job ids), the different
    values of each name in their order.
    """

    state: State = "scheduled"
    began_at: float | None = None
    ended_at: float | None = None
    told: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def of_stages(root: Path, pieces: Iterable[Piece], since: float = 0) -> Progress:
    """Of elements of the stages of a plan. since: unix seconds; attempts that began before it do not count."""
    return together(_of_piece(root, stage, element, since) for stage, element in pieces)


def of_training(folder: Path) -> Progress:
    """Of RUN/train by itself."""
    return _of_events(_events(folder / lives.FILE), lambda: is_held(folder / ".lock"))


def beginnings(folder: Path) -> list[Event]:
    """What each life of RUN/train said when it began."""
    return [event for event in _events(folder / lives.FILE) if event["event"] == "begin"]


def together(parts: Iterable[Progress]) -> Progress:
    """Of all of them: running if one is; finished if all are; else what speaks against that most."""
    parts = list(parts)
    states = {part.state for part in parts}
    order: tuple[State, ...] = ("running", "failed", "preempted", "scheduled")
    state: State = next((state for state in order if state in states), "finished" if states else "scheduled")
    told: dict[str, dict[str, None]] = {}
    for part in parts:
        for name, values in part.told.items():
            told.setdefault(name, {}).update(dict.fromkeys(values))
    return Progress(
        state,
        min((part.began_at for part in parts if part.began_at is not None), default=None),
        max((part.ended_at for part in parts if part.ended_at is not None), default=None),
        {name: tuple(values) for name, values in told.items()},
    )


def latest(first: Progress, second: Progress) -> Progress:
    """Of one thing of which two tell: what is running, else what ended last."""
    both = together([first, second])
    later = max(first, second, key=lambda part: (part.state == "running", part.ended_at or part.began_at or 0))
    return Progress(later.state, both.began_at, both.ended_at, both.told)


def _of_piece(root: Path, stage: str, element: int, since: float) -> Progress:
    name = root / "stages" / f"{stage}.{element}"
    marker = _marker(name.with_name(f"{name.name}.json"))
    events = _events(name.with_name(f"{name.name}.attempts.jsonl"))
    last_begun = max((event["time"] for event in events if event["event"] == "begin"), default=0.0)
    # Work that was killed once its marker was there is done, though no attempt says so, and none will. A marker of
    # before the attempt is of an earlier one.
    if marker and marker[-1]["time"] >= last_begun:
        events = (*events, *marker)
    begun = (i for i, event in enumerate(events) if event["event"] == "begin" and event["time"] >= since)
    events = events[next(begun, len(events)) :]
    progress = _of_events(events, lambda: is_held(name.with_name(f"{name.name}.lock")))
    if progress.state == "finished" and not marker:  # it was done, and something that it was made from has changed
        return Progress("scheduled", progress.began_at, progress.ended_at, progress.told)
    return progress


def _of_events(events: tuple[Event, ...], is_running: Callable[[], bool]) -> Progress:
    if not events:
        return Progress()
    begun = [event["time"] for event in events if event["event"] == "begin"]
    state: State
    if events[-1]["event"] == "end":
        state = _ENDED.get(events[-1].get("status", ""), "failed")
    else:
        state = "running" if is_running() else "failed"
    told: dict[str, dict[str, None]] = {}
    for event in events:
        for key, value in _flat(event):
            told.setdefault(key, {})[value] = None
    return Progress(
        state,
        min(begun, default=None),
        max(event["time"] for event in events),
        {key: tuple(values) for key, values in told.items()},
    )


def _flat(event: Event) -> Iterator[tuple[str, str]]:
    """Short facts of an event by dotted name; a list is several of one name."""
    for key, value in event.items():
        if key in _OF_THE_EVENT or value is None:
            continue
        if isinstance(value, Mapping):
            for inner, text in _flat(value):
                yield f"{key}.{inner}", text
        elif isinstance(value, list):
            yield from ((key, str(item)) for item in value if not isinstance(item, Mapping))
        else:
            yield key, str(value)


def _events(file: Path) -> tuple[Event, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return _parsed(file, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=20_000)
def _parsed(file: Path, mtime_ns: int, size: int) -> tuple[Event, ...]:
    """The events of a file as it was then; lines that a kill tore are passed over."""
    return tuple(EVENT.lines(file))


def _marker(file: Path) -> tuple[Event, ...]:
    """What the marker of a done element says of when that was, as events; nothing where there is none."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return _parsed_marker(file, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=20_000)
def _parsed_marker(file: Path, mtime_ns: int, size: int) -> tuple[Event, ...]:
    marker = MARKER.whole(file)
    if marker is None or "started_at" not in marker:
        return ()
    began_at = marker["started_at"]
    end = {"event": "end", "time": began_at + marker["seconds"], "status": marker.get("status", "done")}
    return {"event": "begin", "time": began_at}, end
