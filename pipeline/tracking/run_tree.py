"""The MLflow runs of one run directory: a parent, and a child per stage, for as long as the directory lives.

Their ids are kept in RUN/mlflow.json, so a stage that is started again continues its run:

    {"tracking_uri": ..., "experiment": ..., "parent_run_id": ..., "runs": {stage: run_id}}
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.schema import RunConfig
from pipeline.files import read_json, write_json
from pipeline.tracking.base import Status
from pipeline.tracking.mlflow import MlflowRuns, tracking_uri
from pipeline.tracking.shipping import replay

log = logging.getLogger(__name__)
FILE = "mlflow.json"


class RunTree:
    """Opens and closes runs; whatever the server does, nothing is raised and the caller goes on (contract 7).

    run_dir: RUN. config: resolved recipe; `tracking` in it says where to, and whether at all.
    """

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        self._run_dir = run_dir
        self._config = config
        self._file = run_dir / FILE
        self._runs: MlflowRuns | None = None
        self._away = not config.tracking.mlflow
        self._state: dict[str, Any] = known_runs(self._file) or {
            "tracking_uri": tracking_uri(config.tracking.uri, run_dir),
            "experiment": config.tracking.experiment,
            "parent_run_id": None,
            "runs": {},
        }

    @property
    def tracking_uri(self) -> str:
        return str(self._state["tracking_uri"])

    @property
    def experiment(self) -> str:
        return str(self._state["experiment"])

    def known(self, stage: str) -> str | None:
        """The run id of a stage that was opened before; asks no server."""
        return None if self._away else self._state["runs"].get(stage)

    def open(self, stage: str, params: Mapping[str, Any] | None = None) -> str | None:
        """Start or continue the stage's run, and the parent with it; None when tracking is off or away."""

        def call(runs: MlflowRuns) -> str:
            parent = runs.open(
                f"{self._config.name} {self._run_dir.resolve().name}",
                run_id=self._state["parent_run_id"],
                tags={"objective": self._config.objective, "corpus": self._config.corpus.name},
                params=self._config.model_dump(mode="json"),
            )
            self._remember(parent_run_id=parent)
            run_id = runs.open(
                stage, parent_run_id=parent, run_id=self.known(stage), tags={"stage": stage}, params=params
            )
            self._remember(runs={**self._state["runs"], stage: run_id})
            return run_id

        return self._try(call)

    def record(
        self, stage: str, metrics: Mapping[str, float], artifacts: list[Path], tags: Mapping[str, str] | None = None
    ) -> None:
        """Metrics and tags known at the stage's end, and files to keep with it."""
        run_id = self.known(stage)
        if run_id is not None:
            self._log(run_id, metrics, artifacts)
            self._try(lambda runs: runs.tag(run_id, tags or {}))

    def replay(self, stage: str, spool: Path) -> None:
        """Send what the stage's run still lacks of its spool."""
        run_id = self.known(stage)
        if run_id is not None:
            self._try(lambda runs: replay(spool, self.tracking_uri, self.experiment, run_id))

    def record_parent(self, metrics: Mapping[str, float], artifacts: list[Path]) -> None:
        """The same for the parent."""
        if self._state["parent_run_id"] is not None:
            self._log(self._state["parent_run_id"], metrics, artifacts)

    def close(self, stage: str, status: Status) -> None:
        """End the stage's run."""
        run_id = self.known(stage)
        if run_id is not None:
            self._try(lambda runs: runs.close(run_id, status))

    def close_parent(self, status: Status) -> None:
        """End the parent's run."""
        parent = self._state["parent_run_id"]
        if parent is not None:
            self._try(lambda runs: runs.close(parent, status))

    def _log(self, run_id: str, metrics: Mapping[str, float], artifacts: list[Path]) -> None:
        def call(runs: MlflowRuns) -> None:
            runs.log_metrics(run_id, metrics)
            for path in artifacts:
                runs.log_artifact(run_id, path)

        self._try(call)

    def _remember(self, **changes: Any) -> None:
        self._state.update(changes)
        write_json(self._file, self._state)

    def _try(self, call: Any) -> Any:
        if self._away:
            return None
        try:
            if self._runs is None:
                self._runs = MlflowRuns(self.tracking_uri, self.experiment)
            return call(self._runs)
        except Exception as error:
            self._away = True  # one warning and one wait are enough for this process
            log.warning("MLflow at %s failed, going on without it: %s", self.tracking_uri, error)
            return None


def known_runs(file: Path) -> dict[str, Any] | None:
    """What mlflow.json says; None when there is none, or none that can be read."""
    try:
        state = read_json(file)
        return state if {"tracking_uri", "experiment", "parent_run_id", "runs"} <= state.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
