"""Brings MLflow to what the files of a run directory say; whatever was sent before is not sent again.

Nothing of what was sent is kept here: the server is asked what it has, at the start and after every failure. So it
does not matter where a mirror was killed, which reply was lost, or whether the server was away for a second or a week.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import fingerprint, sha256_file
from pipeline.locks import exclusive
from pipeline.tracking.accepted import MetricPoint, params_of, tags_of, valid_name
from pipeline.tracking.directory import identify, located, lock_of, remember, root_of
from pipeline.tracking.mlflow import MlflowServer, RemoteRun
from pipeline.tracking.record import Model, RunRecord
from pipeline.tracking.records import records, tracking_of
from pipeline.tracking.spool import Spool
from pipeline.tracking.states import State
from pipeline.typed_files import Reader

_STATUS: dict[State, str] = {
    "scheduled": "SCHEDULED",
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "preempted": "KILLED",
}
_log = logging.getLogger(__name__)
INDEX = "neuclip/artifacts.json"  # an artifact: the digest of each of the others
_INDEX_TAG, _MODEL_TAG = "neuclip.artifacts", "neuclip.model"


@dataclass
class Sent:
    """What one advance sent, and why something was not. running: the run goes on, so there will be more."""

    runs: int = 0
    points: int = 0
    artifacts: int = 0
    models: int = 0
    problems: list[str] = field(default_factory=list)
    running: bool = False


def only_mirror(run_dir: Path, patience_seconds: float = 0) -> AbstractContextManager[None]:
    """One mirror of a directory at a time. Raises InUse while another process is at it, which is waited for so long."""
    return exclusive(lock_of(run_dir), f"the way of {root_of(run_dir)} to MLflow", patience_seconds)


class Mirror:
    """The MLflow runs of one run directory, a member of a sweep being a part of the sweep's.

    uri: another server than the directory's own. Hold `only_mirror` while it advances.
    Raises UserError where there is no run yet or `tracking.mlflow` is off (unless a uri is given).
    """

    def __init__(self, run_dir: Path, uri: str | None = None, progress: Callable[[Sent], None] | None = None) -> None:
        self._root = root_of(run_dir)
        self._tracking = tracking_of(self._root)
        if not self._tracking.mlflow and uri is None:
            raise UserError(f"{self._root}: tracking is off in its recipe (tracking.mlflow=false)")
        known = identify(self._root, self._tracking)
        self._directory = str(known["id"])
        self._is_own = uri is None
        self.uri = uri or located(known["tracking_uri"], self._root)
        self._experiment = str(known["experiment"])
        self._progress = progress or (lambda sent: None)
        self._server: MlflowServer | None = None
        self._remote: dict[str, RemoteRun] | None = None  # None: ask the server
        self._records: list[RunRecord] = []
        self._spools: dict[Path, Spool] = {}
        self._digests: dict[tuple[Path, int, int], str] = {}
        self._registered: dict[str, Model] = {}
        self._damaged: set[str] = set()

    def advance(self) -> Sent:
        """Send everything that is lacking; of damaged files there is a warning.

        Raises what the server raises; what it took until then stays.
        """
        read = Reader()
        self._records = records(self._root, read)
        for problem in {*read.problems} - self._damaged:  # it waits for nobody to mend that
            self._damaged.add(problem)
            _log.warning("not sent: %s", problem)
        sent = Sent(running=self._records[0].progress.state == "running")
        with self._asking_again() as (server, remote):
            for record in self._records:
                if record.identity not in remote:
                    remote[record.identity] = self._create(server, remote, record)
                    sent.runs += 1
            now = [(record, remote[record.identity]) for record in self._records]
            there = [(record, run) for record, run in now if not run.deleted]
            if self._is_own:
                remember(self._root, {record.key: run.run_id for record, run in there})
            self._end_what_is_over(server, remote)
            for record, run in there:
                if record.progress.state == "running":
                    self._set_status(server, record, run)
                self._describe(server, record, run)
                self._send_points(server, record, run, sent)
                self._send_datasets(server, record, run)
            for record, run in there:  # ended, once all is there
                self._set_status(server, record, run)
        for record, run in there:  # files go to another place, which may be away by itself
            try:
                self._send_artifacts(server, record, run, sent)
                self._send_model(server, record, run, sent)
            except Exception as error:
                self._remote = None
                sent.problems.append(f"files of {record.key or record.name}: {error}")
        return sent

    def advance_points(self) -> Sent:
        """Only new lines of the spools that the last advance has found: cheap enough for every second."""
        sent = Sent()
        with self._asking_again() as (server, remote):
            for record in self._records:
                if record.identity in remote and not remote[record.identity].deleted:
                    self._send_spools(server, record, remote[record.identity], sent)
        return sent

    @contextmanager
    def _asking_again(self) -> Iterator[tuple[MlflowServer, dict[str, RemoteRun]]]:
        """The server and what it has; after a failure nobody knows what it took, and it is asked the next time."""
        if self._server is None:
            self._server = MlflowServer(self.uri, self._experiment)
        if self._remote is None:
            self._remote = self._server.runs(self._directory)
        try:
            yield self._server, self._remote
        except BaseException:
            self._remote = None
            raise

    def _create(self, server: MlflowServer, remote: Mapping[str, RemoteRun], record: RunRecord) -> RemoteRun:
        parent = None if record.parent is None else remote[record.parent].run_id
        run_id = server.create(self._directory, record.identity, record.name, parent, record.progress.began_at)
        return RemoteRun(run_id, "RUNNING")

    def _end_what_is_over(self, server: MlflowServer, remote: Mapping[str, RemoteRun]) -> None:
        """Runs of what has gone, as the evaluation of an earlier checkpoint that was killed."""
        for identity in remote.keys() - {record.identity for record in self._records}:
            run = remote[identity]
            if run.status in ("RUNNING", "SCHEDULED") and not run.deleted:
                server.set_status(run.run_id, "KILLED", None)
                run.status = "KILLED"

    def _describe(self, server: MlflowServer, record: RunRecord, run: RemoteRun) -> None:
        """Parameters and tags. A parameter stands for ever; one that has another value now is told by a tag."""
        settings = {name: value for name, value in record.settings.items() if name != "tracking"}
        params = params_of(settings)
        new = {name: value for name, value in params.items() if name not in run.params}
        if new:
            server.log_params(run.run_id, new)
            run.params |= new
        changed = {f"changed.{name}": value for name, value in params.items() if run.params[name] != value}
        self._set_tags(server, run, tags_of({**changed, **record.tags}))

    def _set_tags(self, server: MlflowServer, run: RemoteRun, tags: Mapping[str, str]) -> None:
        new = {name: value for name, value in tags.items() if run.tags.get(name) != value}
        if new:
            server.set_tags(run.run_id, new)
            run.tags |= new

    def _send_points(self, server: MlflowServer, record: RunRecord, run: RemoteRun, sent: Sent) -> None:
        new = [p._replace(name=valid_name(p.name)) for p in record.points if not _has(run, p)]
        if new:
            server.log_points(run.run_id, new)
            self._count(sent, points=len(new))
            run.last |= {point.name: (point.step, point.value) for point in new}
        self._send_spools(server, record, run, sent)

    def _send_spools(self, server: MlflowServer, record: RunRecord, run: RemoteRun, sent: Sent) -> None:
        for path in record.spools:
            last_steps = {name: step for name, (step, _) in run.last.items()}
            for batch in self._spools.setdefault(path, Spool(path)).batches(last_steps):
                server.log_points(run.run_id, batch)
                self._count(sent, points=len(batch))
                run.last |= {point.name: (point.step, point.value) for point in batch}

    def _set_status(self, server: MlflowServer, record: RunRecord, run: RemoteRun) -> None:
        status = _STATUS[record.progress.state]
        if run.status != status:
            server.set_status(run.run_id, status, record.progress.ended_at)
            run.status = status

    def _send_datasets(self, server: MlflowServer, record: RunRecord, run: RemoteRun) -> None:
        new = [data for data in record.datasets if (data.name, data.digest) not in run.datasets]
        if new:
            server.log_datasets(run.run_id, new)
            run.datasets |= {(data.name, data.digest) for data in new}

    def _send_artifacts(self, server: MlflowServer, record: RunRecord, run: RemoteRun, sent: Sent) -> None:
        digests = {name: self._digest(content) for name, content in record.artifacts.items()}
        if not digests or run.tags.get(_INDEX_TAG) == fingerprint(digests):
            return
        index = server.read_artifact(run.run_id, INDEX) if _INDEX_TAG in run.tags else None
        there = json.loads(index) if index else {}
        new = {name: content for name, content in record.artifacts.items() if there.get(name) != digests[name]}
        server.log_artifacts(run.run_id, {**new, INDEX: json.dumps(digests, indent=2).encode()})
        self._count(sent, artifacts=len(new))
        self._set_tags(server, run, {_INDEX_TAG: fingerprint(digests)})

    def _send_model(self, server: MlflowServer, record: RunRecord, run: RemoteRun, sent: Sent) -> None:
        """The exported model, and if the recipe asks for it, its entry in the registry."""
        model = record.model
        if model is None or not self._tracking.models:
            return
        weights, _, model_id = run.tags.get(_MODEL_TAG, "").partition(":")
        if weights != model.weights_sha256:
            model_id = server.log_model(run.run_id, model.folder, model.weights_sha256)
            self._count(sent, models=1)
            self._set_tags(server, run, {_MODEL_TAG: f"{model.weights_sha256}:{model_id}"})
        name = self._tracking.register_as
        if name is not None and self._registered.get(record.key) != model:
            scores = {f"eval/{task}": f"{score:.6g}" for task, score in model.scores.items()}
            tags = tags_of({"weights_sha256": model.weights_sha256, **scores})
            server.register_model(name, self._tracking.alias, run.run_id, model_id, tags)
            self._registered[record.key] = model

    def _digest(self, content: Path | bytes) -> str:
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest()
        found = content.stat()
        key = (content, found.st_mtime_ns, found.st_size)
        if key not in self._digests:
            self._digests[key] = sha256_file(content)
        return self._digests[key]

    def _count(self, sent: Sent, points: int = 0, artifacts: int = 0, models: int = 0) -> None:
        sent.points += points
        sent.artifacts += artifacts
        sent.models += models
        self._progress(sent)


def _has(run: RemoteRun, point: MetricPoint) -> bool:
    """Whether the run's last point of this metric is this one. Databases keep infinity as the largest number."""
    step, value = run.last.get(valid_name(point.name), (-1, 0.0))
    equal = value == point.value or (math.isnan(value) and math.isnan(point.value))
    both_infinite = min(abs(value), abs(point.value)) >= sys.float_info.max and value * point.value > 0
    return step == point.step and (equal or both_infinite)
