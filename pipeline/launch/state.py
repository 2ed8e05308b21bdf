"""Where a run stands, from its files alone; a backend adds what it knows of its jobs.

For people, and fast: a marker that is there counts as done, its proofs are not read again (`neuclip run` and `retry`
judge by content). Whatever is done costs one listing of a folder for all of it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.launch.attempts import Attempt, read_attempts
from pipeline.launch.markers import read_marker
from pipeline.launch.paths import RunPaths
from pipeline.launch.run import Run
from pipeline.launch.stages import Stage
from pipeline.locks import is_held
from pipeline.stopping import STOP_FILE
from pipeline.time_left import seconds_left, total_samples
from pipeline.tracking.jsonl import last_points

State = Literal["done", "running", "queued", "failed", "stopped", "blocked", "waiting"]
STATES: tuple[State, ...] = ("done", "running", "queued", "failed", "stopped", "blocked", "waiting")
SAMPLE = 32  # markers of a stage that are read for the seconds that an element takes
VANISHED = "vanished: killed without a word (kill -9, out of memory, machine lost)"
_NAME = re.compile(r"(.+)\.(\d+)\.(json|attempts\.jsonl)")


@dataclass(frozen=True)
class JobState:
    """What a backend knows of an element's job. reason: why it waits, or is not going to run. nodes: where it runs."""

    state: Literal["queued", "running"]
    job: str
    nodes: str = ""
    reason: str = ""


@dataclass(frozen=True)
class ElementState:
    """One element that is not done. attempt: the last one, None before the first. reason: of the state, if any.

    seconds_left: until a training that runs ends, by its own log; None of anything else.
    """

    element: int
    state: State
    attempt: Attempt | None = None
    nodes: str = ""
    reason: str = ""
    seconds_left: float | None = None

    @property
    def vanished(self) -> bool:
        """Whether the last attempt ended without having said so."""
        return self.state == "failed" and self.attempt is not None and self.attempt.status is None

    @property
    def seconds(self) -> float | None:
        """Of the last attempt, up to now if it runs."""
        if self.attempt is None or (self.attempt.ended_at is None and self.state != "running"):
            return None
        return (self.attempt.ended_at or time.time()) - self.attempt.began_at


@dataclass(frozen=True)
class StageState:
    """One stage. not_done: its elements that are not, in order. element_seconds: that a done one took, on average."""

    name: str
    total: int
    not_done: list[ElementState]
    element_seconds: float | None

    def count(self, state: State) -> int:
        """Elements in this state."""
        if state == "done":
            return self.total - len(self.not_done)
        return sum(element.state == state for element in self.not_done)

    @property
    def seconds_left(self) -> float | None:
        """Until the running and waiting elements are done, at the pace of the done ones; None if not known.

        Of those that run, trainings know better. One that waits takes as long as one that is done, else is not known.
        """
        left = [self._left(element) for element in self.not_done if element.state == "running"]
        waiting = self.count("queued") + self.count("waiting")
        known = [seconds for seconds in left if seconds is not None]
        if not left or len(known) < len(left) or (waiting and self.element_seconds is None):
            return None
        return max(*known, (sum(known) + waiting * (self.element_seconds or 0)) / len(known))

    def _left(self, element: ElementState) -> float | None:
        """Of one that runs."""
        if element.seconds_left is not None or self.element_seconds is None:
            return element.seconds_left
        return max(0.0, self.element_seconds - (element.seconds or 0))


@dataclass(frozen=True)
class RunState:
    """stop: somebody left a file STOP in the run directory."""

    stages: list[StageState]
    stop: bool

    @property
    def done(self) -> bool:
        return all(not stage.not_done for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """What `neuclip status --json` prints."""
        return {
            "stages": {stage.name: _stage_json(stage) for stage in self.stages},
            "done": self.done,
            "stop": self.stop,
        }


def run_state(run: Run, jobs: Mapping[tuple[str, int], JobState] | None = None) -> RunState:
    """Of every stage and element. jobs: those that a backend has queued or running; None where it has none to ask.

    Reads the attempts of what is not done, a few markers per stage, the end of the log of a training that runs.
    """
    done, tried = _listed(run.paths)
    states = [_stage_state(run, stage, done, tried, jobs or {}) for stage in run.stages]
    return RunState(states, (run.paths.root / STOP_FILE).exists())


def element_state(run: Run, stage: Stage, number: int) -> ElementState:
    """Of one element, done ones included."""
    if run.paths.marker(stage.name, number).exists():
        return ElementState(number, "done")
    attempts = read_attempts(run.paths.attempts(stage.name, number))
    return _not_done(run, stage, number, attempts[-1] if attempts else None, None)


def _listed(paths: RunPaths) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """The elements of each stage that have a marker, and those that have attempts."""
    done: dict[str, set[int]] = {}
    tried: dict[str, set[int]] = {}
    for name in os.listdir(paths.stages) if paths.stages.is_dir() else ():
        if match := _NAME.fullmatch(name):
            kind = done if match[3] == "json" else tried
            kind.setdefault(match[1], set()).add(int(match[2]))
    return done, tried


def _stage_state(
    run: Run,
    stage: Stage,
    done: Mapping[str, set[int]],
    tried: Mapping[str, set[int]],
    jobs: Mapping[tuple[str, int], JobState],
) -> StageState:
    mine = done.get(stage.name, set())
    not_done = []
    for number in range(stage.elements):
        if number in mine:
            continue
        attempted = number in tried.get(stage.name, ())
        attempts = read_attempts(run.paths.attempts(stage.name, number)) if attempted else []
        element = _not_done(run, stage, number, attempts[-1] if attempts else None, jobs.get((stage.name, number)))
        if element.state == "blocked" and all(n in done.get(need.name, ()) for need, n in run.needs(stage, number)):
            element = ElementState(number, "waiting", element.attempt)
        if element.state == "running" and stage.together:
            element = replace(element, seconds_left=_training_left(stage.paths_of(run.paths, number)))
        not_done.append(element)
    sample = sorted(number for number in mine if number < stage.elements)[-SAMPLE:]
    seconds = [marker["seconds"] for n in sample if (marker := read_marker(run.paths, stage, n)) is not None]
    return StageState(stage.name, stage.elements, not_done, sum(seconds) / len(seconds) if seconds else None)


def _training_left(paths: RunPaths) -> float | None:
    points = last_points(paths.train / "metrics.jsonl")
    return seconds_left(points, total_samples(paths.config.train.model_dump(), points), time.time())


def _not_done(run: Run, stage: Stage, number: int, last: Attempt | None, job: JobState | None) -> ElementState:
    if job is not None:
        return ElementState(number, job.state, last, job.nodes, job.reason)
    if last is None:
        return ElementState(number, "waiting")
    if last.status is not None and last.status != "done":
        return ElementState(number, last.status, last, last.host, last.reason)
    if last.status == "done":  # its marker is gone since: an input changed, or somebody removed it
        return ElementState(number, "waiting", last)
    if is_held(run.paths.lock(stage.name, number)):
        return ElementState(number, "running", last, last.host)
    return ElementState(number, "failed", last, last.host, VANISHED)


def _stage_json(stage: StageState) -> dict[str, Any]:
    failures = {
        str(element.element): element.reason for element in stage.not_done if element.state in ("failed", "stopped")
    }
    return {
        **{state: stage.count(state) for state in STATES},
        "total": stage.total,
        "element_seconds": stage.element_seconds,
        "seconds_left": stage.seconds_left,
        "failures": failures,
    }
