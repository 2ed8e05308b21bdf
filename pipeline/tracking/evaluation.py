"""One MLflow run per evaluated checkpoint: whoever evaluates it again, or more of it, continues that run.

The run is found by its tags, so it does not matter whether the chain made it (`run_tree`) or a command given by hand.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.schema import TrackingConfig
from pipeline.tracking.mlflow import MlflowRuns, tracking_uri
from pipeline.tracking.run_tree import FILE, known_runs

log = logging.getLogger(__name__)
_IDENTITY = ("checkpoint_sha256", "model_config_sha256", "precision")


def evaluation_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Scores, means of groups, and the average or partial mean. summary: as in aggregate.json."""
    scores = {f"eval/{task}": entry["score"] for task, entry in summary["scores"].items()}
    groups = {f"eval/group/{group}": entry["mean"] for group, entry in summary["groups"].items()}
    means = {f"eval/{name}": summary[name] for name in ("average", "partial_mean") if summary.get(name) is not None}
    return {name: float(value) for name, value in {**scores, **groups, **means}.items()}


def evaluation_tags(summary: Mapping[str, Any]) -> dict[str, str]:
    """What identifies the evaluated checkpoint."""
    return {key: summary[key] for key in _IDENTITY}


def evaluation_artifacts(out: Path) -> list[Path]:
    """Results, average, and DataComp's file of results."""
    return sorted(out.glob("*.json*"))


def record_evaluation(out: Path, summary: Mapping[str, Any], anywhere: bool) -> None:
    """Log what an evaluation came to, where `out` lies in a run directory that is tracked, there.

    anywhere: also outside of one, to MLFLOW_TRACKING_URI or SQLite in `out`. Nothing is raised if the server is away.
    """
    known = known_runs(out.resolve().parent / FILE)
    if known is None and not anywhere:
        return
    default = TrackingConfig()
    place = known or {
        "tracking_uri": tracking_uri(default.uri, out),
        "experiment": default.experiment,
        "parent_run_id": None,
    }
    try:
        runs = MlflowRuns(place["tracking_uri"], place["experiment"])
        tags = {"stage": "evaluate", **evaluation_tags(summary)}
        run_id = runs.open(
            f"evaluate {summary['model']} {summary['checkpoint_sha256'][:12]}",
            parent_run_id=place["parent_run_id"],
            run_id=runs.find(tags),
            tags=tags,
        )
        runs.log_metrics(run_id, evaluation_metrics(summary))
        for path in evaluation_artifacts(out):
            runs.log_artifact(run_id, path)
        runs.close(run_id, "finished")
    except Exception as error:
        log.warning("MLflow at %s failed, the scores are in %s alone: %s", place["tracking_uri"], out, error)
