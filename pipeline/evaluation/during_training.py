"""Evaluation while training goes on: rank 0 has checkpoints evaluated, and logs `eval/<task>` once there are scores.

Whenever `evaluate_during.every` has gone by the trainer saves, and a process of its own (`of_checkpoint`) exports and
evaluates that checkpoint. No rank waits for it, and nothing that happens to it happens to training. One runs at a time;
of what comes due meanwhile the newest waits for its turn, and what waited before is left out.

    RUN/train/evaluations/step-00000500/   <task>.json, log.txt; model/ while it is at work

What was logged says what was done: after a resume the newest checkpoint that was due and has no scores in metrics.jsonl
is evaluated, which keeps the results of tasks that are there.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.callbacks import Callback
from pipeline.config.duration import period_ends
from pipeline.config.schema import EvaluateDuringConfig, RunConfig
from pipeline.data.loader import Batch
from pipeline.distributed import VARIABLES
from pipeline.engine.checkpoint import Checkpointer
from pipeline.engine.engine import StepOutput
from pipeline.engine.tags import complete_tags, is_complete, step_of, tag_of
from pipeline.errors import UserError
from pipeline.evaluation.results import read_result
from pipeline.evaluation.task_folder import open_task_folder
from pipeline.evaluation.tasks import load_tasks, select_tasks
from pipeline.tracking.base import EVALUATION, Tracker
from pipeline.tracking.jsonl import read_points

if TYPE_CHECKING:
    from pipeline.trainer import Trainer

log = logging.getLogger(__name__)
COMMAND = (sys.executable, "-m", "pipeline.evaluation.of_checkpoint")
POLL_SECONDS = 0.2
END_SECONDS = 5  # for a process that was killed; one that waits for a dead file system may never end


@dataclass
class _Evaluation:
    """Of one checkpoint, on its way."""

    tag: str
    process: subprocess.Popen[bytes]
    deadline: float
    out_of_time: bool = False


class Evaluations(Callback):
    """A callback. `recall` comes first, `finish` after the last save, `close` in any case."""

    def __init__(
        self, config: RunConfig, folder: Path, checkpointer: Checkpointer, samples_per_epoch: int, rank: int
    ) -> None:
        """folder: RUN/train. Raises UserError, on every rank, for tasks that are not there."""
        self._config, self._checkpointer = config.evaluate_during, checkpointer
        self._folder, self._checkpoints = folder / "evaluations", folder / "checkpoints"
        self._batch, self._epoch = config.train.global_batch_size, samples_per_epoch
        self._look_every_steps = config.train.log_every_steps
        self._tasks = _present(self._config) if self._config.every is not None else []
        self._works = bool(self._tasks) and rank == 0
        self._running: _Evaluation | None = None
        self._waiting: str | None = None  # the tag whose turn is next

    def recall(self, spool: Path, step: int) -> None:
        """Take up what lives before this one left undone. spool: metrics.jsonl. step: where this one begins."""
        with self._harmless():
            if self._works:
                self._forget_after(step)
                named = (p.step for p in read_points(spool) if any(name.startswith(EVALUATION) for name in p.metrics))
                newest = max(named, default=0)
                steps = [step_of(tag) for tag in complete_tags(self._checkpoints)]
                due = [s for s in steps if newest < s <= step and self._is_due(s)]
                self._hold(tag_of(max(due)) if due else None)

    def after_step(self, trainer: Trainer, batch: Batch, output: StepOutput) -> None:
        step = trainer.progress.step
        with self._harmless():
            if self._works and self._is_due(step):
                if self._waiting is not None:
                    self._leave_out(self._waiting, "the one before it takes longer than evaluate_during.every")
                self._hold(tag_of(step))
            if self._works and step % self._look_every_steps == 0:
                self._look(trainer.tracker)

    def finish(self, tracker: Tracker, moving: Callable[[], bool]) -> None:
        """Wait for what is due, for at most `wait_minutes`, and while `moving` says True."""
        deadline = time.monotonic() + 60 * self._config.wait_minutes
        with self._harmless():
            self._look(tracker)
            while self._works and self._running is not None and moving():
                if time.monotonic() >= deadline:
                    self._leave_out(self._waiting or self._running.tag, "evaluate_during.wait_minutes are over")
                    break
                time.sleep(POLL_SECONDS)
                self._look(tracker)
            if self._works:
                self._hold(None)
                self._checkpointer.remove_superseded()

    def close(self) -> None:
        """End what still runs: the next life of the run begins it again."""
        if self._running is not None:
            self._running.process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._running.process.wait(END_SECONDS)
            self._remove_model(self._running.tag)
            self._running = None

    def _look(self, tracker: Tracker) -> None:
        """See what became of the evaluation that runs, and begin the next."""
        if self._running is not None and self._has_ended(self._running):
            self._conclude(self._running, tracker)
            self._running = None
            self._hold(self._waiting)
        if self._running is None and self._waiting and is_complete(self._checkpoints / self._waiting):
            self._running, self._waiting = self._begin(self._waiting), None

    def _begin(self, tag: str) -> _Evaluation:
        out = self._folder / tag
        out.mkdir(parents=True, exist_ok=True)
        request = {
            "checkpoint": str(self._checkpoints / tag),
            "out": str(out),
            "data": self._config.data,
            "tasks": self._tasks,
            "options": {key: getattr(self._config, key) for key in ("batch_size", "workers", "device")},
        }
        environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        if self._config.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        with open(out / "log.txt", "ab") as stream:
            process = subprocess.Popen(
                [*COMMAND, str(os.getpid()), json.dumps(request)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        return _Evaluation(tag, process, time.monotonic() + 60 * self._config.limit_minutes)

    def _has_ended(self, running: _Evaluation) -> bool:
        if running.process.poll() is None and time.monotonic() > running.deadline:
            running.process.kill()
            running.out_of_time = True
        return running.process.poll() is not None

    def _conclude(self, ended: _Evaluation, tracker: Tracker) -> None:
        """Log the scores that are there, and warn where some are not."""
        self._remove_model(ended.tag)
        found = {task: read_result(self._folder / ended.tag, task) for task in self._tasks}
        step = step_of(ended.tag)
        done = {task: result["score"] for task, result in found.items() if result is not None}
        scores = {EVALUATION + task: score for task, score in done.items() if score is not None}
        if scores:
            tracker.log(scores, step, step * self._batch)
        missing = [task for task in self._tasks if task not in done]
        if missing or ended.process.returncode:
            how = f"ended with {ended.process.returncode}"
            if ended.out_of_time:
                how = f"was killed after evaluate_during.limit_minutes={self._config.limit_minutes:g}"
            log.warning(
                "the evaluation of step %d %s; training goes on without scores of %s. Its last words are in %s",
                step,
                how,
                ", ".join(missing) or "none",
                self._folder / ended.tag / "log.txt",
            )

    def _hold(self, waiting: str | None) -> None:
        """Checkpoints that are evaluated, or will be, stay."""
        self._waiting = waiting
        running = {self._running.tag} if self._running else set()
        self._checkpointer.held = frozenset(running | ({waiting} if waiting else set()))

    def _leave_out(self, tag: str, why: str) -> None:
        log.warning("step %d is left out of evaluation: %s", step_of(tag), why)

    def _is_due(self, step: int) -> bool:
        return self._config.every is not None and period_ends(self._config.every, step, self._batch, self._epoch)

    def _forget_after(self, step: int) -> None:
        """Remove results of steps that come again, and what a life that was killed left of others."""
        for folder in self._folder.glob("step-*"):
            self._remove_model(folder.name)
            if step_of(folder.name) > step:
                shutil.rmtree(folder)

    def _remove_model(self, tag: str) -> None:
        shutil.rmtree(self._folder / tag / "model", ignore_errors=True)

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """What goes wrong inside is one warning and the end of evaluating, not of training (contract 7)."""
        try:
            yield
        except Exception as error:
            self._works = False
            self.close()
            self._hold(None)
            log.warning("nothing more is evaluated during training: %s: %s", type(error).__name__, error)


def _present(config: EvaluateDuringConfig) -> list[str]:
    """The names of the chosen tasks. Raises UserError where one is unknown, or its folder is not there."""
    if config.data is None:
        raise UserError("evaluate_during.data is missing: name the folder of the tasks")
    data = Path(config.data)
    tasks = select_tasks(load_tasks(data), config.tasks)
    for name, task in tasks.items():
        try:
            open_task_folder(data, name, task)
        except UserError as error:
            raise UserError(f"evaluate_during: task {name}: {error}") from error
    return list(tasks)
