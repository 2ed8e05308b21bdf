"""MLflow runs of evaluations that are given by hand.

RUN/results belongs to the run directory, and is mirrored with it. Any other folder of results has a run of its own, one
per checkpoint and precision: it is found by them, so whoever evaluates more of a checkpoint continues its run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.schema import TrackingConfig
from pipeline.files import fingerprint
from pipeline.locks import InUse
from pipeline.tracking.accepted import MetricPoint, tags_of
from pipeline.tracking.directory import known_runs, tracking_uri
from pipeline.tracking.mirror import Mirror, only_mirror
from pipeline.tracking.mlflow import MlflowServer
from pipeline.tracking.records import scores_of
from pipeline.typed_files import Reader

_IDENTITY = ("checkpoint_sha256", "model_config_sha256", "precision")
_KEY = "evaluate"
_log = logging.getLogger(__name__)


def record_evaluation(out: Path, summary: Mapping[str, Any], anywhere: bool) -> None:
    """Log what an evaluation came to, where `out` lies in a run directory that is tracked, there.

    summary: as in aggregate.json. anywhere: also outside of one, to MLFLOW_TRACKING_URI or SQLite in `out`.
    Nothing is raised if the server is away.
    """
    home = out.resolve().parent
    known = known_runs(home, read := Reader())
    for problem in read.problems:
        _log.warning("%s", problem)
    if known is None and not anywhere:
        return
    place = known or {
        "tracking_uri": tracking_uri(None, out),
        "experiment": TrackingConfig().experiment,
        "parent_run_id": None,
    }
    try:
        if known is not None and out.name == "results":
            _mirror(home)
        else:
            _record(out, summary, place)
    except Exception as error:
        _log.warning("MLflow at %s failed, the scores are in %s alone: %s", place["tracking_uri"], out, error)


def _mirror(home: Path) -> None:
    try:
        with only_mirror(home):
            problems = Mirror(home).advance().problems
    except InUse:
        return  # whoever is at it sees the new files too
    if problems:
        raise OSError("; ".join(problems))


def _record(out: Path, summary: Mapping[str, Any], place: Mapping[str, Any]) -> None:
    identity = {name: str(summary[name]) for name in _IDENTITY}
    server, directory = MlflowServer(place["tracking_uri"], place["experiment"]), fingerprint(identity)
    found = server.runs(directory).get(_KEY)
    if found is not None and found.deleted:
        return  # somebody did not want it
    name = f"evaluate {summary['model']} {summary['checkpoint_sha256'][:12]}"
    run_id = found.run_id if found else server.create(directory, _KEY, name, place["parent_run_id"], None)
    server.set_tags(run_id, tags_of(identity))
    now = time.time()
    values = {f"eval/{name}": value for name, value in scores_of(summary).items() if value is not None}
    server.log_points(run_id, [MetricPoint(name, float(value), 0, now) for name, value in values.items()])
    server.log_artifacts(run_id, {path.name: path for path in sorted(out.glob("*.json*"))})
    server.set_status(run_id, "FINISHED", now)
