"""What the stages came to, in MLflow.

Whatever the backend, the same tree: a parent for the run directory, or for each member of a sweep, and a child per
stage. Importing mlflow takes seconds, so elements leave it alone; training, a failure, and whatever completes the tree
bring it up to date. Nothing is recorded twice (RUN/mlflow.json says what was), and nothing fails because of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.launch.attempts import Status
from pipeline.launch.markers import read_marker
from pipeline.launch.outcome import stage_artifacts, stage_metrics
from pipeline.launch.paths import RunPaths
from pipeline.launch.run import Run
from pipeline.launch.stages import Stage
from pipeline.locks import is_held, taking_turns
from pipeline.tracking.mlflow import tracking_uri
from pipeline.tracking.run_tree import RunTree

log = logging.getLogger(__name__)


def element_begins(run: Run, stage: Stage, element: int) -> None:
    """Training finds its run open: a trainer never imports mlflow."""

    def act(turn: _Turn) -> None:
        turn.catch_up()
        turn.tree.open(stage.name)

    if stage.name == "train":
        _in_turn(run, stage, element, act)


def element_ended(run: Run, stage: Stage, element: int, status: Status) -> None:
    """Bring the tree up to date, where it is worth the seconds."""

    def act(turn: _Turn) -> None:
        if status == "failed":
            turn.fail(stage)
        elif stage.name == "train" or turn.all_complete():
            turn.catch_up()
            turn.finish()

    # Thousands may fail while the server is away, each waiting for it: one at a time is enough to tell.
    if status == "done" or (status == "failed" and not is_held(_lock(run))):
        _in_turn(run, stage, element, act)


@dataclass
class _Turn:
    """One tree of runs, for as long as no other process works on it. paths: of the run, or of one member."""

    run: Run
    paths: RunPaths
    member: int
    stages: list[Stage]
    tree: RunTree

    def complete(self, stage: Stage) -> bool:
        return all(self.run.paths.marker(stage.name, i).exists() for i in stage.of_member(self.member))

    def all_complete(self) -> bool:
        return all(map(self.complete, self.stages))

    def catch_up(self) -> None:
        """Record every complete stage that was not recorded as it is now."""
        for stage in self.stages:
            if not self.complete(stage):
                continue
            elements = stage.of_member(self.member)
            state = max(self.run.paths.marker(stage.name, i).stat().st_mtime_ns for i in elements)
            if self.tree.recorded(stage.name) == state:
                continue
            markers = [m for m in (read_marker(self.run.paths, stage, i) for i in elements) if m is not None]
            self.tree.open(stage.name, started_at=min(m["started_at"] for m in markers))
            if stage.name == "train":
                self.tree.replay("train", self.paths.train / "metrics.jsonl")
            self.tree.record(stage.name, stage_metrics(self.paths, stage.name), stage_artifacts(self.paths, stage.name))
            ended_at = max(m["started_at"] + m["seconds"] for m in markers)
            self.tree.close(stage.name, "finished", ended_at)
            self.tree.remember_recorded(stage.name, state)

    def finish(self) -> None:
        """Close the tree, if all of it is complete."""
        if self.all_complete():
            self.tree.record_parent(stage_metrics(self.paths, "evaluate"), stage_artifacts(self.paths, "report"))
            self.tree.close_parent("finished")

    def fail(self, stage: Stage) -> None:
        """Say that the stage failed, once."""
        if self.tree.recorded(stage.name) != "failed":
            self.catch_up()
            self.tree.open(stage.name)
            self.tree.close(stage.name, "failed")
            self.tree.close_parent("failed")
            self.tree.remember_recorded(stage.name, "failed")


def _in_turn(run: Run, stage: Stage, element: int, act: Callable[[_Turn], None]) -> None:
    """Act on the tree to which an element's stage belongs, if anything is tracked."""
    if not run.paths.config.tracking.mlflow:
        return
    try:
        paths = stage.paths_of(run.paths, element)
        tracking = paths.config.tracking
        uri = tracking_uri(tracking.uri, paths.root)  # members of a sweep share one database
        config = paths.config.model_copy(update={"tracking": tracking.model_copy(update={"uri": uri})})
        alike = [s for s in run.stages if bool(s.per_member) == bool(stage.per_member) or not run.paths.members]
        with taking_turns(_lock(run)):
            act(_Turn(run, paths, stage.member_of(element), alike, RunTree(paths.home, config)))
    except Exception as error:
        log.warning("stage %s was not recorded in MLflow, going on without it: %s", stage.name, error)


def _lock(run: Run) -> Path:
    return run.paths.stages / "mlflow.lock"
