"""An MLflow server, or a database file in its place, in the verbs that the mirror needs. The only import of mlflow.

Importing mlflow takes seconds of CPU, so a training process never does: it leaves that to `shipper`.
"""

from __future__ import annotations

import os
import posixpath
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from pipeline.errors import UserError
from pipeline.locks import taking_turns
from pipeline.tracking.accepted import METRICS_PER_BATCH, NAME_LENGTH, TAG_LENGTH, Dataset, MetricPoint, cut, valid_name
from pipeline.tracking.directory import database_of, uri_of
from pipeline.tracking.moved import artifacts_beside, follow

T = TypeVar("T")

_DIRECTORY, _KEY = "neuclip.directory", "neuclip.key"  # tags that say which run directory, and which run of it
_WEIGHTS = "neuclip_weights_sha256"
_PER_BATCH = 100  # parameters, tags


@dataclass
class RemoteRun:
    """What the server has of a run. last: step and value of each metric's last point. datasets: names and digests."""

    run_id: str
    status: str
    deleted: bool = False
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    last: dict[str, tuple[int, float]] = field(default_factory=dict)
    datasets: set[tuple[str, str]] = field(default_factory=set)


class MlflowServer:
    """The runs of one experiment, which is made when it is first needed.

    uri: as MLflow takes it. With SQLite the artifacts lie in `mlartifacts` beside the database file.

    Every method raises mlflow's MlflowException or an OSError when the server does not answer within seconds, or not
    as it should; nothing is tried a second time in here, as whether a lost request was taken has to be asked first.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        _quiet_and_quick()
        from mlflow import MlflowClient

        database = database_of(uri)
        # Two processes that make the tables of one SQLite file at once fail on each other.
        with taking_turns(database.with_suffix(".lock")) if database else nullcontext():
            if database is not None and not database.exists():
                _make_tables(database)
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            if database:
                follow(database)
        self._uri = uri
        self._experiment = experiment
        self._known_experiment_id: str | None = None

    def runs(self, directory: str) -> dict[str, RemoteRun]:
        """The runs of a run directory, by key. directory: its id.

        Where a reply was lost and a run was made twice, the one without content is deleted. A run that somebody
        deleted is there, and says so.
        """
        from mlflow.entities import ViewType

        found: dict[str, list[RemoteRun]] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id()], f"tags.`{_DIRECTORY}` = '{directory}'", ViewType.ALL, 200, page_token=token
            )
            for run in page:
                found.setdefault(run.data.tags[_KEY], []).append(_remote(run))
            token = page.token
            if not token:
                return {key: self._only_one(twins) for key, twins in found.items()}

    def create(self, directory: str, key: str, name: str, parent_run_id: str | None, began_at: float | None) -> str:
        """Make a run, status RUNNING; returns its id."""
        tags = {_DIRECTORY: directory, _KEY: cut(key, TAG_LENGTH)}
        if parent_run_id is not None:
            tags["mlflow.parentRunId"] = parent_run_id
        start = None if began_at is None else int(began_at * 1000)
        run_name = cut(name, NAME_LENGTH) or "run"
        return str(self._client.create_run(self._experiment_id(), start, tags, run_name).info.run_id)

    def log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Send points in their order, in batches that the server takes as a whole or not at all."""
        from mlflow.entities import Metric

        for batch in _batches(points, METRICS_PER_BATCH):
            metrics = [Metric(valid_name(p.name), p.value, int(p.time * 1000), p.step) for p in batch]
            self._client.log_batch(run_id, metrics=metrics)

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Parameters that the run does not have yet: MLflow lets none change."""
        from mlflow.entities import Param

        for batch in _batches(params.items(), _PER_BATCH):
            self._client.log_batch(run_id, params=[Param(*item) for item in batch])

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags, new or changed."""
        from mlflow.entities import RunTag

        for batch in _batches(tags.items(), _PER_BATCH):
            self._client.log_batch(run_id, tags=[RunTag(*item) for item in batch])

    def set_status(self, run_id: str, status: str, ended_at: float | None) -> None:
        """status: of MLflow. ended_at: unix seconds, of a run that has ended."""
        if status in ("RUNNING", "SCHEDULED"):
            self._client.update_run(run_id, status=status)
        else:
            self._client.set_terminated(run_id, status, None if ended_at is None else int(ended_at * 1000))

    def log_datasets(self, run_id: str, datasets: Sequence[Dataset]) -> None:
        """Say what the run read; one that it has already stays as it is."""
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag

        inputs = []
        for data in datasets:
            entity = Entity(data.name, data.digest, "uri", data.source, profile=data.profile)
            inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", data.context)]))
        self._client.log_inputs(run_id, inputs)

    def log_artifacts(self, run_id: str, artifacts: Mapping[str, Path | bytes]) -> None:
        """Copy files into the run's artifacts, under other names if need be; those of the same names are replaced."""
        for name, content in artifacts.items():
            folder, base = posixpath.split(name)
            with TemporaryDirectory() as scratch:
                file = Path(scratch) / base
                if isinstance(content, bytes):
                    file.write_bytes(content)
                else:
                    file.symlink_to(content.resolve())
                self._client.log_artifact(run_id, str(file), folder or None)

    def read_artifact(self, run_id: str, name: str) -> bytes | None:
        """The content of a small artifact; None where there is none."""
        from mlflow.exceptions import MlflowException

        folder = posixpath.dirname(name)
        if not any(entry.path == name for entry in self._client.list_artifacts(run_id, folder or None)):
            return None
        with TemporaryDirectory() as scratch:
            try:
                return Path(self._client.download_artifacts(run_id, name, scratch)).read_bytes()
            except MlflowException as error:
                raise OSError(f"artifact {name} cannot be read: {error}") from error

    def log_model(self, run_id: str, folder: Path, weights_sha256: str) -> str:
        """The logged model of an exported one; returns its id. Uploaded once, whatever failed in between.

        Into a folder of this machine files are linked where that can be: weights are not there twice.
        """
        known = self._client.search_logged_models(
            [self._experiment_id()], f"tags.{_WEIGHTS} = '{weights_sha256}' AND source_run_id = '{run_id}'"
        )
        ready = next((model for model in known if str(model.status) == "READY"), None)
        if ready is not None:
            return str(ready.model_id)
        model = next(iter(known), None) or self._client.create_logged_model(
            self._experiment_id(), "model", run_id, {_WEIGHTS: weights_sha256}, model_type="open_clip"
        )
        place = urlsplit(model.artifact_location)
        if place.scheme == "file":
            shutil.copytree(folder, unquote(place.path), copy_function=_link_or_copy, dirs_exist_ok=True)
        else:
            self._client.log_model_artifacts(model.model_id, str(folder))
        self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def register_model(self, name: str, alias: str, run_id: str, model_id: str, tags: Mapping[str, str]) -> str:
        """The version of a registered model that is this logged one; returns its number.

        Made if need be, with the alias on it; one that stands gets the tags, and leaves the alias where it is now.
        """
        import mlflow
        from mlflow.exceptions import MlflowException

        versions = [v for v in self._versions(name) if v.run_id == run_id and v.source.endswith(model_id)]
        if not versions:
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            mlflow.set_tracking_uri(self._uri)  # the registry looks the logged model up there
            source = f"models:/{model_id}"
            version = self._client.create_model_version(
                name, source, run_id, dict(tags), await_creation_for=0, model_id=model_id
            )
            versions = [version]
            self._client.set_registered_model_alias(name, alias, versions[0].version)
        for key, value in tags.items():
            if versions[0].tags.get(key) != value:
                self._client.set_model_version_tag(name, versions[0].version, key, value)
        return str(versions[0].version)

    def _versions(self, name: str) -> Iterator[Any]:
        token = None
        while True:
            quoted = name.replace("'", "''")
            page = self._client.search_model_versions(f"name = '{quoted}'", page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _only_one(self, twins: list[RemoteRun]) -> RemoteRun:
        there = sorted(
            (run for run in twins if not run.deleted), key=lambda run: (-len(run.last), -len(run.params), run.run_id)
        )
        for extra in there[1:]:
            self._client.delete_run(extra.run_id)
        return there[0] if there else twins[0]

    def _experiment_id(self) -> str:
        if self._known_experiment_id is None:
            self._known_experiment_id = self._find_experiment()
        return self._known_experiment_id

    def _find_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                database = database_of(self._uri)
                location = artifacts_beside(database).as_uri() if database else None
                return str(self._client.create_experiment(self._experiment, location))
            except MlflowException:
                found = self._client.get_experiment_by_name(self._experiment)  # another process was faster
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise UserError(
                f"the MLflow experiment {self._experiment!r} at {self._uri} was deleted: restore it "
                f"(`mlflow experiments restore -x {found.experiment_id}`) or name another tracking.experiment"
            )
        return str(found.experiment_id)


def _make_tables(database: Path) -> None:
    """Beside the file until all stand, for seconds: where a kill left a part of them, MLflow never makes the rest.

    One process at a time may do this.
    """
    from mlflow import MlflowClient

    beside = database.with_name(f".{database.name}.tmp")
    for left in beside.parent.glob(f"{beside.name}*"):  # by a kill; its journal would be undone in the new file
        left.unlink()
    MlflowClient(tracking_uri=uri_of(beside))
    os.replace(beside, database)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = list(items)
    for start in range(0, len(rest), size):
        yield rest[start : start + size]


def _link_or_copy(source: str, target: str) -> None:
    """What an export writes is replaced by the next one and never changed, so another name keeps it as it is."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _remote(run: Any) -> RemoteRun:
    return RemoteRun(
        run_id=run.info.run_id,
        status=run.info.status,
        deleted=run.info.lifecycle_stage != "active",
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        last={metric.key: (metric.step, metric.value) for metric in run.data.to_proto().metrics},
        datasets={(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs},
    )


def _quiet_and_quick() -> None:
    """Before mlflow is imported: no telemetry, no chatter, and a server that does not answer is given up in seconds.

    It must not try again by itself: a request that it believes lost may have been taken.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
