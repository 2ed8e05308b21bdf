"""Which runs of which server are a run directory's: RUN/mlflow.json.

    {"id": hex, "tracking_uri": uri, "experiment": name, "parent_run_id": id, "runs": {key: id}}

`id` is the directory's own, made once; on the server every run of the directory carries it as a tag, so what is there
is asked of the server. The run ids are kept for people and reports. A database in the directory has the relative uri
`sqlite:///mlflow.db`, so that the directory may be moved.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pipeline.files import write_json
from pipeline.run_files import TRACKED_RUNS
from pipeline.typed_files import Reader

if TYPE_CHECKING:
    from pipeline.config.schema import TrackingConfig

FILE = "mlflow.json"
DATABASE = "mlflow.db"
_SQLITE = "sqlite:///"
_OWN = f"{_SQLITE}{DATABASE}"


def root_of(run_dir: Path) -> Path:
    """The directory that has the runs of `run_dir`: for a member of a sweep, the sweep's."""
    run_dir = run_dir.resolve()
    sweep = run_dir.parent.parent
    return sweep if run_dir.parent.name == "members" and (sweep / "plan.json").exists() else run_dir


def lock_of(run_dir: Path) -> Path:
    """Held by the process that mirrors the directory."""
    return root_of(run_dir) / ".mlflow.lock"


def tracking_uri(configured: str | None, run_dir: Path) -> str:
    """Where runs go: the recipe's uri, else MLFLOW_TRACKING_URI, else SQLite in the run directory."""
    return located(configured or os.environ.get("MLFLOW_TRACKING_URI") or _OWN, run_dir)


def located(uri: str, run_dir: Path) -> str:
    """A uri of mlflow.json as MLflow takes it."""
    return uri_of(run_dir.resolve() / DATABASE) if uri == _OWN else uri


def uri_of(database: Path) -> str:
    """Of an SQLite file, in which `?` and `%` are written as %3F and %25. database: absolute."""
    return _SQLITE + str(database).replace("%", "%25").replace("?", "%3F")


def database_of(uri: str) -> Path | None:
    """The file of an SQLite uri; None for a server."""
    return Path(unquote(uri.removeprefix(_SQLITE))).resolve() if uri.startswith(_SQLITE) else None


def identify(root: Path, tracking: TrackingConfig) -> dict[str, Any]:
    """What mlflow.json says; it is begun if need be, and the runs stay where they are begun.

    As long as none is, a place that is named now counts: the one before may have been a mistake. One process at a time
    may do this. Raises UserError where the file is damaged: a new one would be of other runs.
    """
    known = TRACKED_RUNS.read(root / FILE) or {}
    named = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if "id" not in known or (named and not known.get("parent_run_id")):
        uri = tracking_uri(tracking.uri, root)
        known = {
            "id": known.get("id", uuid.uuid4().hex),
            "tracking_uri": _OWN if uri == located(_OWN, root) else uri,
            "experiment": tracking.experiment,
        }
        write_json(root / FILE, known)
    return known


def remember(root: Path, run_ids: Mapping[str, str]) -> None:
    """Keep the ids of the runs, by key, the parent's being ''."""
    known = TRACKED_RUNS.read(root / FILE)
    children = {key: run_id for key, run_id in run_ids.items() if key}
    ids = {"parent_run_id": run_ids.get(""), "runs": children}
    if known is not None and {**known, **ids} != known:
        write_json(root / FILE, {**known, **ids})


def known_runs(run_dir: Path, read: Reader) -> dict[str, Any] | None:
    """{tracking_uri, experiment, parent_run_id, runs}, the uri as MLflow takes it; None before there are runs.

    Of a member of a sweep those that are its own.
    """
    root = root_of(run_dir)
    known = read(TRACKED_RUNS, root / FILE) or {}
    runs = {"": known.get("parent_run_id"), **known.get("runs", {})}
    own = run_dir.resolve().relative_to(root).as_posix().removeprefix(".")
    if runs.get(own) is None:
        return None
    below = f"{own}/" if own else ""
    children = {key.removeprefix(below): run_id for key, run_id in runs.items() if key != own and key.startswith(below)}
    uri = located(known["tracking_uri"], root)
    return {**known, "tracking_uri": uri, "parent_run_id": runs[own], "runs": children}
