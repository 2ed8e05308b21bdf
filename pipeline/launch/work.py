"""One element of one stage, as every backend has it done: `neuclip work RUN STAGE [ELEMENT]`."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.errors import UserError
from pipeline.launch import recording
from pipeline.launch.attempts import Status, begin_attempt, end_attempt, read_attempts
from pipeline.launch.children import end, start
from pipeline.launch.image_server import image_server
from pipeline.launch.launchers import LAUNCHERS
from pipeline.launch.markers import is_done, mark_done
from pipeline.launch.run import Run
from pipeline.launch.settle import refuse_altered
from pipeline.launch.stages import Stage
from pipeline.locks import exclusive
from pipeline.stopping import EXIT_STOPPED, SIGNALS, STOP_FILE

POLL_SECONDS = 0.05
# When a scheduler ends a job it tells every process of it, srun and the ranks as well. What it sends ahead of a time
# limit reaches the job's first process alone.
OF_JOBS = (signal.SIGUSR1,)
PATIENCE_SECONDS = 120  # in a job that has come back: for what is still ending on the machine where it was before
EXIT_STATUS: dict[Status, int] = {"done": 0, "failed": 2, "blocked": 3, "stopped": EXIT_STOPPED}
SAID_LINES = 12  # of a failed command's log


class _Forwarder:
    """Passes signals on to a command; those that come before it runs, when it does. A context manager.

    passed_on: those of SIGNALS that the command is not told by others. ending: called once, by `attend`, when SIGTERM
    has come, behind which SIGKILL may follow.
    """

    def __init__(self, passed_on: Collection[int], ending: Callable[[], None]) -> None:
        self._passed_on = passed_on
        self._ending: Callable[[], None] | None = ending
        self.asked: list[str] = []
        self._pending: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Forwarder:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def to(self, process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
        """For as long as the command runs; it is ended should the block end before it."""
        self._process = process
        try:
            while self._pending:
                process.send_signal(self._pending.pop(0))
            yield process
        finally:
            self._process = None
            if process.poll() is None:
                end([process])

    def ask(self, number: int, name: str) -> None:
        """Have the command end. name: of what wants it to."""
        self.asked.append(name)
        if self._process is None:
            self._pending.append(number)
        else:
            self._process.send_signal(number)

    def attend(self) -> None:
        """To be called often while the command runs."""
        if self._ending is not None and signal.SIGTERM.name in self.asked:
            ending, self._ending = self._ending, None
            ending()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number in self._passed_on:
            self.ask(number, name)
        else:
            self.asked.append(name)


@dataclass
class _Ended:
    status: Status
    exit_status: int | None = None
    reason: str = ""


def work(
    run: Run,
    stage: Stage,
    element: int,
    launcher: str,
    job: Mapping[str, Any] | None,
    ending: Callable[[], None] = lambda: None,
) -> int:
    """Bring one element to done, unless it is; returns the exit status of `neuclip work`.

    launcher: of the ranks, a name of LAUNCHERS. job: what the backend says of this attempt, to be kept with it.
    ending: called while the command runs, once SIGTERM has come.
    0: done. 75: stopped, the same command goes on. 3: an element that this one needs is not done. 2: failed.
    Raises UserError, having touched nothing, where another process works on the element or there is none.
    """
    if not 0 <= element < stage.elements:
        raise UserError(f"stage {stage.name} has {stage.elements} elements, numbered from 0: there is no {element}")
    name = f"stage {stage.name}, element {element}"
    with (
        _Forwarder(OF_JOBS if launcher == "srun" else SIGNALS, ending) as forwarder,
        exclusive(run.paths.lock(stage.name, element), f"{name} of {run.paths.root}", PATIENCE_SECONDS if job else 0),
    ):
        if is_done(run, stage, element):
            print(f"{name}: done before", flush=True)
            return 0
        run.paths.marker(stage.name, element).unlink(missing_ok=True)  # it is of other inputs, or of lost outputs
        attempt = begin_attempt(run.paths.attempts(stage.name, element), job)
        ended = _Ended("failed", reason="ended by an error of its own: see the traceback")
        try:
            ended = _attempt(run, stage, element, launcher, forwarder, alone=job is not None)
        except (UserError, OSError) as error:
            # A scheduler that ends a job tells all of its processes: the image server may be gone before the command.
            by = f"stopped by {', '.join(forwarder.asked)}: " if forwarder.asked else ""
            ended = _Ended("stopped" if by else "failed", reason=f"{by}error: {error}")
        finally:
            end_attempt(run.paths.attempts(stage.name, element), attempt, ended.status, ended.exit_status, ended.reason)
        print("\n  ".join([f"{name}: {ended.status}", *ended.reason.splitlines()]), flush=True)
    recording.element_ended(run, stage, ended.status)
    return EXIT_STATUS[ended.status]


def _attempt(run: Run, stage: Stage, element: int, launcher: str, forwarder: _Forwarder, alone: bool) -> _Ended:
    stop = run.paths.root / STOP_FILE
    if stop.exists():
        return _Ended("stopped", reason=f"{stop} exists: somebody wants this run to stop. Remove it to go on.")
    if forwarder.asked:
        return _Ended("stopped", reason=f"stopped by {forwarder.asked[0]} before it began")
    lacking = next((need for need in run.needs(stage, element) if not is_done(run, *need)), None)
    if lacking is not None:
        return _Ended("blocked", reason=_why_blocked(run, *lacking))
    refuse_altered(stage.paths_of(run.paths, element))
    started_at = time.time()
    with image_server(run.paths, alone) if stage.served else nullcontext(lambda: None) as check:
        command, ended = _execute(run, stage, element, launcher, forwarder, check)
        if ended.status == "done":
            check()
            mark_done(run, stage, element, started_at, command)
    return ended


def _execute(
    run: Run, stage: Stage, element: int, launcher: str, forwarder: _Forwarder, check: Callable[[], None]
) -> tuple[list[str], _Ended]:
    """check: raises when something that the command relies on is gone."""
    command = stage.command(run.paths, element)
    command, of_launcher = LAUNCHERS[launcher](stage.paths_of(run.paths, element), command, stage.together)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200", **of_launcher}
    log = run.paths.log(stage.name, element)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as stream:
        stream.write(f"$ {shlex.join(command)}\n".encode())
        stream.flush()
        begin = stream.tell()
        with forwarder.to(start(command, stream, environment)) as process:
            _wait(run, stage, element, forwarder, process, check)
    said = _said(log, begin)
    if process.returncode == 0:
        return command, _Ended("done", 0)
    if process.returncode == EXIT_STOPPED or forwarder.asked:
        by = f"stopped by {', '.join(forwarder.asked)}" if forwarder.asked else "stopped"
        said = said.removeprefix("stopped: ")
        return command, _Ended("stopped", process.returncode, f"{by}: {said}" if said else by)
    return command, _Ended("failed", process.returncode, f"exit status {process.returncode}\n{said}\nFull log: {log}")


def _wait(
    run: Run,
    stage: Stage,
    element: int,
    forwarder: _Forwarder,
    process: subprocess.Popen[bytes],
    check: Callable[[], None],
) -> None:
    # Training sees a STOP in its own folder by itself; a member's is not the one of the run.
    far_stop = run.paths.root / STOP_FILE if stage.paths_of(run.paths, element).home != run.paths.root else None
    while process.poll() is None:
        check()
        forwarder.attend()
        if far_stop is not None and stage.together and far_stop.exists():
            forwarder.ask(signal.SIGUSR1, str(far_stop))
            far_stop = None
        time.sleep(POLL_SECONDS)


def _why_blocked(run: Run, need: Stage, element: int) -> str:
    attempts = read_attempts(run.paths.attempts(need.name, element))
    why = (attempts[-1].reason or attempts[-1].status or "its attempt has no end") if attempts else "it was not tried"
    return f"needs stage {need.name}, element {element}, which is not done: {why}"


def _said(log: Path, begin: int) -> str:
    """The message with which a command ended: from its first line that is one, else the last lines."""
    with open(log, "rb") as stream:
        stream.seek(begin)
        lines = stream.read().decode(errors="replace").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith(("error: ", "stopped: "))]
    return "\n".join(lines[starts[0] :][:SAID_LINES] if starts else lines[-SAID_LINES:])
