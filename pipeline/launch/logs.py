"""The log of one element: the last attempt's, and what comes while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.errors import UserError
from pipeline.launch.run import Run
from pipeline.launch.state import RunState, State, element_state

POLL_SECONDS = 0.3
# Whose log somebody wants to see who does not say whose.
INTEREST: tuple[State, ...] = ("running", "failed", "stopped", "blocked")


def choose(run: Run, state: RunState, stage: str | None, element: int | None) -> tuple[str, int]:
    """The element meant: as given, else what runs, else what failed, else the last that is done.

    Raises UserError when there is no such stage or element, or nothing has a log yet.
    """
    if stage is not None:
        elements = run.stage(stage).elements
        if element is not None and element >= elements:
            raise UserError(f"stage {stage} has {elements} elements, numbered from 0: there is no {element}")
        if element is not None:
            return stage, element
    stages = [s for s in state.stages if stage in (None, s.name)]
    for wanted in INTEREST:
        for of in stages:
            for candidate in of.not_done:
                if candidate.state == wanted and run.paths.log(of.name, candidate.element).exists():
                    return of.name, candidate.element
    for of in reversed(stages):
        for number in range(of.total):
            if run.paths.log(of.name, number).exists():
                return of.name, number
    raise UserError(f"no log in {run.paths.root} yet: nothing {f'of stage {stage} ' if stage else ''}has begun")


def show_log(run: Run, stage: str, element: int, follow: bool, say: Callable[[str], None]) -> None:
    """Say the log from its last attempt's command on; with `follow`, go on for as long as the element runs.

    Raises UserError when there is no log.
    """
    log = run.paths.log(stage, element)
    if not log.exists():
        why = element_state(run, run.stage(stage), element).reason or "it has not begun"
        raise UserError(f"no log of stage {stage}, element {element} in {run.paths.root}: {why}")
    with open(log, encoding="utf-8", errors="replace") as stream:
        text = stream.read()
        say(text[text.rfind("\n$ ") + 1 :])
        while follow:
            state = element_state(run, run.stage(stage), element).state
            more = stream.read()
            say(more)
            if not more and state != "running":
                say(f"({stage} {element}: {state})\n")
                return
            time.sleep(POLL_SECONDS)
