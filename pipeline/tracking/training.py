"""Where the metrics of a training run go, as one tracker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.schema import TrackingConfig
from pipeline.tracking.base import CompositeTracker, Tracker
from pipeline.tracking.console import ConsoleTracker
from pipeline.tracking.jsonl import JsonlTracker
from pipeline.tracking.live import Shipper
from pipeline.tracking.lives import LivesTracker


def training_tracker(
    tracking: TrackingConfig,
    run_dir: Path,
    spool: Path,
    start: tuple[int, int],
    total_steps: int,
    told: Mapping[str, Any],
) -> Tracker:
    """What rank 0 logs to: the spool, the terminal, the record of lives, and, unless it is off, the way to MLflow.

    start: steps done and samples seen where this process continues; points beyond it are dropped from the spool.
    told: what the record of lives says of this one.
    """
    step, samples_seen = start
    trackers: list[Tracker] = [
        JsonlTracker(spool, step),
        ConsoleTracker(total_steps, step),
        LivesTracker(spool.parent, step, samples_seen, told),
    ]
    if tracking.mlflow:
        trackers.append(Shipper(run_dir))
    return CompositeTracker(trackers)
