"""`neuclip ui`: MLflow's own pages on what a run directory holds."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import read_object
from pipeline.tracking.directory import DATABASE, FILE, database_of, located, root_of, uri_of
from pipeline.tracking.moved import follow

HOST = "127.0.0.1"


def tracking_store(folder: Path) -> str:
    """The URI of the runs of `folder`: as its mlflow.json says, else of its mlflow.db.

    A run directory that was moved takes its database along. Raises UserError where there is neither.
    """
    folder = root_of(folder)
    said = located(str((read_object(folder / FILE) or {}).get("tracking_uri") or ""), folder)
    named, own = database_of(said), folder / DATABASE
    if said and (named is None or named.is_file()):
        return said
    if own.is_file():
        return uri_of(own)
    below = sorted(str(path.parent) for path in folder.glob(f"*/{DATABASE}"))
    if below:
        raise UserError(
            f"{folder} holds several runs, each with its own mlflow.db: give one of {', '.join(below[:10])}"
        )
    lost = f"; {named}, which its mlflow.json names, is gone" if said else ""
    raise UserError(f"nothing in {folder} was tracked in MLflow: it has no mlflow.db{lost}")


def refuse_taken(port: int) -> None:
    """Raises UserError if somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port {port} of {HOST} cannot be had ({error.strerror}): give another with --port"
            ) from error


def become_ui(store: str, port: int) -> None:
    """Turn this process into MLflow's server, on this machine only; does not return."""
    database = database_of(store)
    if database is not None:
        follow(database)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # seven processes that no run here needs
    arguments = ["ui", "--backend-store-uri", store, "--host", HOST, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])
