"""The local backend: has the elements that a run still lacks worked on by processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

from pipeline.errors import UserError
from pipeline.launch.attempts import read_attempts
from pipeline.launch.children import end, last_line, start
from pipeline.launch.display import Display
from pipeline.launch.markers import todo
from pipeline.launch.paths import RunPaths
from pipeline.launch.plan import freeze
from pipeline.launch.run import Run
from pipeline.launch.stages import Stage
from pipeline.launch.stop_signal import Stopped, ended_by_signal, held, raise_if_stopped
from pipeline.locks import exclusive
from pipeline.stopping import EXIT_STOPPED, STOP_FILE
from pipeline.tracking.live import mirrored

POLL_SECONDS = 0.1


class RunStopped(UserError):
    """The run was asked to stop and did; it can go on."""

    exit_status = EXIT_STOPPED


@dataclass
class _Worker:
    """One running `neuclip work`. output: what it says."""

    element: int
    process: subprocess.Popen[bytes]
    output: IO[bytes]


def worker_command(run: Run, stage: Stage, element: int) -> list[str]:
    """How this backend has an element worked on."""
    return [sys.executable, "-m", "pipeline", "work", str(run.paths.root), stage.name, str(element)]


def bring_to_done(paths: RunPaths, jobs: int, first: str | None = None, only: str | None = None) -> tuple[Run, bool]:
    """Freeze a settled plan and do what is missing; returns the run, and whether anything was missing.

    jobs: elements of a stage that run at once. first, only: names that leave out other stages. A stage whose element
    fails is worked on to its end, none after it is begun. Raises UserError with what the failed commands said,
    RunStopped where RUN/STOP ended it.
    """
    with (
        ended_by_signal(),
        ExitStack() as after_unlocking,  # who holds the lock counts as running
        exclusive(paths.root / ".lock", str(paths.root)),
    ):
        run = Run.planned(freeze(paths))
        stages = run.select(first, only)
        missing = any(todo(run, stage) for stage in stages)
        if missing:
            after_unlocking.enter_context(mirrored(paths.root, paths.config.tracking))
            _work_on(run, stages, jobs)
    return run, missing


def _work_on(run: Run, stages: Sequence[Stage], jobs: int) -> None:
    with Display(stages) as display:
        for stage in stages:
            raise_if_stopped()
            lacking = todo(run, stage)
            if not lacking:
                display.skip(stage.name)
                continue
            _refuse_stop(run)
            display.start(stage.name, lacking)
            try:
                # Ranks that work as one have the machine for themselves.
                ended = _work_on_elements(run, stage, lacking, 1 if stage.together else jobs, display)
                _raise_for(run, stage, ended, len(lacking))
            except (Stopped, RunStopped):
                display.stop(stage.name)
                raise
            except BaseException:
                display.fail(stage.name)
                raise
            display.finish(stage.name)


def _work_on_elements(run: Run, stage: Stage, lacking: list[int], jobs: int, display: Display) -> dict[int, str]:
    """Returns why elements did not get done, by element."""
    waiting, workers = list(reversed(lacking)), list[_Worker]()
    failed: dict[int, str] = {}
    stop = run.paths.root / STOP_FILE
    try:
        while workers or (waiting and not stop.exists()):
            while waiting and len(workers) < jobs and not stop.exists():
                with held():  # until the child is among those that `end` ends
                    workers.append(_start(run, stage, waiting.pop()))
            time.sleep(POLL_SECONDS)
            raise_if_stopped()
            if workers:
                display.update(stage.name, last_line(run.paths.log(stage.name, workers[-1].element)))
            for worker in [w for w in workers if w.process.poll() is not None]:
                workers.remove(worker)
                if worker.process.returncode == 0:
                    display.advance(stage.name)
                else:
                    failed[worker.element] = _why(run, stage, worker)
    finally:
        # A trainer saves; it bounds its stop itself.
        end([w.process for w in workers], 1.2 * run.paths.config.checkpoint.stop_within_seconds)
    return failed


def _start(run: Run, stage: Stage, element: int) -> _Worker:
    output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
    return _Worker(element, start(worker_command(run, stage, element), output, os.environ), output)


def _why(run: Run, stage: Stage, worker: _Worker) -> str:
    attempts = read_attempts(run.paths.attempts(stage.name, worker.element))
    if attempts and attempts[-1].pid == worker.process.pid and attempts[-1].status is not None:
        return attempts[-1].reason
    worker.output.seek(0)
    said = worker.output.read().decode(errors="replace").strip()
    return said or f"ended without a word, with exit status {worker.process.returncode}"


def _refuse_stop(run: Run) -> None:
    stop = run.paths.root / STOP_FILE
    if stop.exists():
        raise RunStopped(f"stopped: {stop} exists. To go on:\n  rm {stop}\n  neuclip retry {run.paths.root}")


def _raise_for(run: Run, stage: Stage, failed: dict[int, str], of: int) -> None:
    _refuse_stop(run)
    if not failed:
        return
    root = run.paths.root
    stopped = all(_status(run, stage, element) == "stopped" for element in failed)
    told = [f"element {element}: " + "\n    ".join(why.splitlines()) for element, why in sorted(failed.items())]
    lines = "\n  ".join(told[:5] + ([f"and {len(told) - 5} more: neuclip status {root}"] if len(told) > 5 else []))
    if stopped:
        raise RunStopped(f"stage {stage.name} stopped:\n  {lines}\nTo go on: neuclip retry {root}")
    raise UserError(
        f"stage {stage.name}: {len(failed)} of {of} elements failed, and nothing after it was begun:\n  {lines}\n"
        f"Mend the cause, then run the same command again or: neuclip retry {root}\nWhat is done stays done."
    )


def _status(run: Run, stage: Stage, element: int) -> str | None:
    attempts = read_attempts(run.paths.attempts(stage.name, element))
    return attempts[-1].status if attempts else None
