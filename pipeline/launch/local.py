"""The local backend: runs on this machine whatever the plan still lacks, stage by stage."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from pipeline.errors import UserError
from pipeline.launch.display import Display
from pipeline.launch.markers import is_done, mark_done
from pipeline.launch.outcome import stage_artifacts, stage_metrics
from pipeline.launch.paths import RunPaths
from pipeline.launch.stages import Stage, build_stages
from pipeline.locks import exclusive
from pipeline.processes import die_with_parent
from pipeline.tracking.run_tree import RunTree

POLL_SECONDS = 0.1
SERVER_SECONDS = 30


@dataclass
class _Element:
    """One running element of a stage."""

    number: int
    command: list[str]
    process: subprocess.Popen[bytes]
    log: Path
    started_at: float = field(default_factory=time.time)


def run(paths: RunPaths, jobs: int) -> bool:
    """Bring every stage of the plan to done; returns False when there was nothing to do.

    jobs: elements of a stage that run at once. Raises UserError with the failed command's own message.
    """
    stages = build_stages(paths)
    with exclusive(paths.root / ".lock", str(paths.root)):
        missing = {stage.name for stage in stages if _todo(paths, stage)}
        if not missing:
            return False
        tree = RunTree(paths.root, paths.config)
        with Display(stages) as display, _terminated_by_signal():
            for stage in stages:
                todo = _todo(paths, stage)
                if not todo:
                    display.skip(stage.name)
                    continue
                display.start(stage.name, todo)
                tree.open(stage.name)
                try:
                    with _server(paths) if stage.served else _nothing():
                        _run_stage(paths, stage, todo, jobs, display)
                except BaseException:
                    display.fail(stage.name)
                    tree.close(stage.name, "failed")
                    tree.close_parent("failed")
                    raise
                display.finish(stage.name)
                tree.record(stage.name, stage_metrics(paths, stage.name), stage_artifacts(paths, stage.name))
                tree.close(stage.name, "finished")
        tree.record_parent(stage_metrics(paths, "evaluate"), stage_artifacts(paths, "report"))
        tree.close_parent("finished")
    return True


def _todo(paths: RunPaths, stage: Stage) -> list[int]:
    return [element for element in range(stage.elements) if not is_done(paths, stage, element)]


def _run_stage(paths: RunPaths, stage: Stage, todo: list[int], jobs: int, display: Display) -> None:
    waiting = list(reversed(todo))
    running: list[_Element] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(paths, stage, waiting.pop()))
            time.sleep(POLL_SECONDS)
            display.update(stage.name, _last_line(running[-1].log))
            for element in [e for e in running if e.process.poll() is not None]:
                running.remove(element)
                if element.process.returncode != 0:
                    raise UserError(_failure(paths, stage, element))
                mark_done(paths, stage, element.number, element.started_at, element.command)
                display.advance(stage.name)
    finally:
        for element in running:
            _end(element.process)


def _start(paths: RunPaths, stage: Stage, number: int) -> _Element:
    command = stage.command(paths, number)
    log = paths.log(stage.name, number)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    if stage.ranks > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // stage.ranks)))
    with open(log, "ab") as stream:
        stream.write(f"$ {shlex.join(command)}\n".encode())
        stream.flush()
        process = _popen(command, stream, environment)
    return _Element(number, command, process, log)


def _popen(command: list[str], stream: IO[bytes], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=subprocess.STDOUT,
        env=environment,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _failure(paths: RunPaths, stage: Stage, element: _Element) -> str:
    lines = element.log.read_text(errors="replace").splitlines()
    begin = max(i for i, line in enumerate(lines) if line.startswith("$ "))
    lines = lines[begin + 1 :]
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    said = lines[starts[0] : starts[0] + 12] if starts else lines[-12:]
    return (
        f"stage {stage.name}, element {element.number} ended with exit status {element.process.returncode}:\n  "
        + "\n  ".join(said)
        + f"\nFull log: {element.log}\nMend the cause and run the same command again: what is done stays done."
    )


def _last_line(log: Path, size: int = 2000) -> str:
    with open(log, "rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
        lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith("$ ")), "")


@contextmanager
def _server(paths: RunPaths) -> Iterator[None]:
    """The image server of a fabricated corpus, for as long as the stage that downloads from it."""
    port = paths.config.corpus.port
    source = paths.config.data if paths.config.corpus.fabricate == "emoji" else paths.corpus / "source"
    command = [sys.executable, "-m", "data_prep", "serve", str(source), "--port", str(port)]
    log = paths.log("serve", 0)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as stream:
        process = _popen(command, stream, dict(os.environ))
    try:
        deadline = time.monotonic() + SERVER_SECONDS
        while process.poll() is None and not _answers(port):
            if time.monotonic() > deadline:
                raise UserError(f"the image server does not answer on port {port} of localhost: see {log}")
            time.sleep(POLL_SECONDS)
        if process.poll() is not None:
            raise UserError(
                f"the image server could not start:\n  {_last_line(log)}\n"
                f"The URLs of this corpus carry port {port}: free it, or start over in another directory."
            )
        yield
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _terminated_by_signal() -> Iterator[None]:
    """SIGTERM as an ordinary exception, so that children are ended and the display is closed."""

    def stop(number: int, frame: object) -> None:
        raise UserError(f"stopped by {signal.Signals(number).name}; the same command goes on from here")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
