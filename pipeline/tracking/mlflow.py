"""MLflow: the runs of one experiment. The only file that imports mlflow, and only when it is used.

Importing mlflow takes seconds of CPU, so a training process never does: it leaves that to `shipping`.

Axes: MLflow's integer step is `samples_seen`, the axis on which runs of different batch sizes compare; its
timestamp is the time at which the point was logged, so that its time axis works too.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.locks import taking_turns
from pipeline.tracking.base import Status

_STATUS: dict[Status, str] = {"finished": "FINISHED", "failed": "FAILED", "preempted": "KILLED"}
_SQLITE = "sqlite:///"

# Limits of MLflow's REST API.
METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_NAME_LENGTH = 250
_PARAM_LENGTH = 6000


class MetricPoint(NamedTuple):
    """One value of one metric. step: samples seen. time: unix seconds."""

    name: str
    value: float
    step: int
    time: float


def tracking_uri(configured: str | None, run_dir: Path) -> str:
    """Where runs go: the recipe's uri, else MLFLOW_TRACKING_URI, else SQLite in the run directory."""
    local = f"{_SQLITE}{run_dir.resolve() / 'mlflow.db'}"
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or local


class MlflowRuns:
    """The runs of one experiment, which is created when the first run is opened.

    uri: as MLflow takes it. With SQLite the artifacts lie in `mlartifacts` beside the database file.

    Every method raises mlflow's MlflowException when the server stays away for some seconds: a caller for
    whom tracking is optional catches it. Any number of processes may use one experiment at once.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        _quiet_and_quick()
        from mlflow import MlflowClient

        database = _sqlite_file(uri)
        # Two processes that make the tables of one SQLite file at once fail on each other.
        with taking_turns(database.with_suffix(".lock")) if database else nullcontext():
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._uri = uri
        self._experiment = experiment

    def open(
        self,
        name: str,
        parent_run_id: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> str:
        """Start a run, or continue `run_id`; returns its id.

        params: nested settings, logged flat (`train.steps`) and once: those that the run has are left alone.
        tags: set again when the run is continued, so that they say where it runs now.
        """
        if run_id is None:
            parent = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
            run_id = self._client.create_run(self._experiment_id(), run_name=name, tags=parent).info.run_id
        self.resume(run_id, tags)
        self._log_params(run_id, params or {})
        return run_id

    def resume(self, run_id: str, tags: Mapping[str, str] | None = None) -> None:
        """The run goes on, here: status RUNNING, the tag `host` and the given ones."""
        self._client.update_run(run_id, status="RUNNING")
        self.tag(run_id, {"host": socket.gethostname(), **(tags or {})})

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        for key, value in tags.items():
            self._client.set_tag(run_id, key, value)

    def find(self, tags: Mapping[str, str]) -> str | None:
        """The latest run of the experiment with all of these tags."""
        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is None:
            return None
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self._client.search_runs([experiment.experiment_id], wanted, max_results=1)
        return found[0].info.run_id if found else None

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Values known at one moment, such as scores. step: samples seen."""
        now = time.time()
        self.log_points(run_id, [MetricPoint(name, value, step, now) for name, value in metrics.items()])

    def log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Send points in their order, in batches that the server takes as a whole or not at all."""
        from mlflow.entities import Metric

        for start in range(0, len(points), METRICS_PER_BATCH):
            batch = points[start : start + METRICS_PER_BATCH]
            metrics = [Metric(valid_name(p.name), p.value, int(p.time * 1000), p.step) for p in batch]
            self._client.log_batch(run_id, metrics=metrics)

    def last_steps(self, run_id: str) -> dict[str, int]:
        """The last step (samples seen) that the run has of each metric, by metric name."""
        return {metric.key: metric.step for metric in self._client.get_run(run_id).data.to_proto().metrics}

    def log_artifact(self, run_id: str, path: Path) -> None:
        """Copy one file into the run's artifacts."""
        self._client.log_artifact(run_id, str(path))

    def close(self, run_id: str, status: Status) -> None:
        """End the run; `open` can continue it."""
        self._client.set_terminated(run_id, _STATUS[status])

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                database = _sqlite_file(self._uri)
                location = database.with_name("mlartifacts").as_uri() if database else None
                return self._client.create_experiment(self._experiment, location)
            except MlflowException:
                found = self._client.get_experiment_by_name(self._experiment)  # another process was faster
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise UserError(
                f"the MLflow experiment {self._experiment!r} at {self._uri} was deleted: restore it "
                f"(`mlflow experiments restore -x {found.experiment_id}`) or name another tracking.experiment"
            )
        return found.experiment_id

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        known = self._client.get_run(run_id).data.params
        named = {valid_name(key): str(value)[:_PARAM_LENGTH] for key, value in flatten(params)}
        new = [Param(key, value) for key, value in named.items() if key not in known]
        for start in range(0, len(new), _PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=new[start : start + _PARAMS_PER_BATCH])


def valid_name(name: str) -> str:
    """`name` with what MLflow does not take in the name of a metric or parameter replaced by `_`."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)[:_NAME_LENGTH]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings with dotted names."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _sqlite_file(uri: str) -> Path | None:
    """The database file of an SQLite uri; None for a server."""
    return Path(uri.removeprefix(_SQLITE)).resolve() if uri.startswith(_SQLITE) else None


def _quiet_and_quick() -> None:
    """Before mlflow is imported: no telemetry, no chatter, and a server that is away is given up in seconds.

    What the user has set in the environment stands.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
