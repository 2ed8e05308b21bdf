"""Where metrics go: the terminal, metrics.jsonl, MLflow. None of it can slow or end training (contract 7)."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.schema import RunConfig
from pipeline.tracking.base import CompositeTracker, Tracker
from pipeline.tracking.console import ConsoleTracker
from pipeline.tracking.jsonl import JsonlTracker
from pipeline.tracking.run_tree import RunTree
from pipeline.tracking.shipping import MlflowTracker


def training_tracker(config: RunConfig, run_dir: Path, spool: Path, start_step: int, total_steps: int) -> Tracker:
    """What rank 0 logs to: the spool, the terminal, and, unless it is off or away, the run's MLflow run.

    start_step: where this process continues; points beyond it are dropped from the spool.
    """
    trackers: list[Tracker] = [JsonlTracker(spool, start_step), ConsoleTracker(total_steps, start_step)]
    tree = RunTree(run_dir, config)
    run_id = tree.known("train") or tree.open("train")
    if run_id is not None:
        trackers.append(MlflowTracker(spool, tree.tracking_uri, tree.experiment, run_id))
    return CompositeTracker(trackers)
