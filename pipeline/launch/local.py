"""The local backend: runs on this machine whatever the plan still lacks, stage by stage."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.schema import RunConfig
from pipeline.errors import UserError
from pipeline.launch.children import end, last_line, start
from pipeline.launch.display import Display
from pipeline.launch.image_server import image_server
from pipeline.launch.markers import is_done, mark_done
from pipeline.launch.outcome import stage_artifacts, stage_metrics, stage_tags
from pipeline.launch.paths import RunPaths
from pipeline.launch.plan import freeze
from pipeline.launch.stages import Stage, build_stages
from pipeline.launch.stop_signal import ended_by_signal, held, raise_if_stopped
from pipeline.locks import exclusive
from pipeline.tracking.run_tree import RunTree

POLL_SECONDS = 0.1


@dataclass
class _Element:
    """One running element of a stage."""

    number: int
    command: list[str]
    process: subprocess.Popen[bytes]
    log: Path
    started_at: float = field(default_factory=time.time)


def run(config: RunConfig, run_dir: Path, jobs: int) -> tuple[RunPaths, bool]:
    """Bring every stage of a settled recipe to done in `run_dir`; returns its paths, and whether anything was missing.

    jobs: elements of a stage that run at once. Raises UserError with the failed command's own message.
    """
    with exclusive(run_dir / ".lock", str(run_dir)), ended_by_signal():
        paths = freeze(config, run_dir)
        stages = build_stages(paths)
        missing = any(_todo(paths, stage) for stage in stages)
        if missing:
            _run_stages(paths, stages, jobs)
    return paths, missing


def _run_stages(paths: RunPaths, stages: list[Stage], jobs: int) -> None:
    tree = RunTree(paths.root, paths.config)
    with Display(stages) as display:
        for stage in stages:
            raise_if_stopped()
            todo = _todo(paths, stage)
            if not todo:
                display.skip(stage.name)
                continue
            display.start(stage.name, todo)
            tree.open(stage.name)
            try:
                with image_server(paths) if stage.served else nullcontext(lambda: None) as check:
                    _run_elements(paths, stage, todo, jobs, display, check)
            except BaseException:
                display.fail(stage.name)
                tree.close(stage.name, "failed")
                tree.close_parent("failed")
                raise
            display.finish(stage.name)
            if stage.name == "train":
                tree.replay("train", paths.train / "metrics.jsonl")
            artifacts, tags = stage_artifacts(paths, stage.name), stage_tags(paths, stage.name)
            tree.record(stage.name, stage_metrics(paths, stage.name), artifacts, tags)
            tree.close(stage.name, "finished")
    tree.record_parent(stage_metrics(paths, "evaluate"), stage_artifacts(paths, "report"))
    tree.close_parent("finished")


def _todo(paths: RunPaths, stage: Stage) -> list[int]:
    return [element for element in range(stage.elements) if not is_done(paths, stage, element)]


def _run_elements(
    paths: RunPaths, stage: Stage, todo: list[int], jobs: int, display: Display, check: Callable[[], None]
) -> None:
    """check: raises when something that the elements rely on is gone; asked before any is called done."""
    waiting = list(reversed(todo))
    running: list[_Element] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                with held():  # until the child is among those that `end` ends
                    running.append(_start(paths, stage, waiting.pop()))
            time.sleep(POLL_SECONDS)
            raise_if_stopped()
            display.update(stage.name, last_line(running[-1].log))
            ended = [e for e in running if e.process.poll() is not None]
            check()
            for element in ended:
                running.remove(element)
                if element.process.returncode != 0:
                    raise UserError(_failure(paths, stage, element))
                mark_done(paths, stage, element.number, element.started_at, element.command)
                display.advance(stage.name)
    finally:
        end([element.process for element in running])


def _start(paths: RunPaths, stage: Stage, number: int) -> _Element:
    command = stage.command(paths, number)
    log = paths.log(stage.name, number)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    if stage.together:
        for meeting_point in paths.root.glob("stages/rendezvous-*"):  # of launches that are over
            meeting_point.unlink()
        threads = max(1, (os.cpu_count() or 1) // paths.config.train.processes)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        # torchrun would keep a store for its ranks that listens on every interface; ours keep their own.
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with open(log, "ab") as stream:
        stream.write(f"$ {shlex.join(command)}\n".encode())
        stream.flush()
        process = start(command, stream, environment)
    return _Element(number, command, process, log)


def _failure(paths: RunPaths, stage: Stage, element: _Element) -> str:
    lines = element.log.read_text(errors="replace").splitlines()
    begin = max(i for i, line in enumerate(lines) if line.startswith("$ "))
    lines = lines[begin + 1 :]
    starts = [i for i, line in enumerate(lines) if line.startswith(("error: ", "stopped: "))]
    said = lines[starts[0] : starts[0] + 12] if starts else lines[-12:]
    return (
        f"stage {stage.name}, element {element.number} ended with exit status {element.process.returncode}:\n  "
        + "\n  ".join(said)
        + f"\nFull log: {element.log}\nMend the cause and run the same command again: what is done stays done."
    )
