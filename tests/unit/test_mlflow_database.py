"""MLflow's own SQLite file: whoever begins to make it may be killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.tracking.mlflow import MlflowServer

KILLED = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from pipeline.tracking.mlflow import MlflowServer

@event.listens_for(Engine, "after_cursor_execute")
def kill(connection, cursor, statement, *rest):
    if "CREATE TABLE secrets" in statement:
        os.kill(os.getpid(), signal.SIGKILL)

MlflowServer(sys.argv[1], "demo")
"""


def test_killed_between_two_tables_the_next_one_makes_them_all(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert subprocess.run([sys.executable, "-c", KILLED, uri]).returncode == -9
    server = MlflowServer(uri, "demo")
    run = server.create("here", "", "a run", None, None)
    assert {found.run_id for found in server.runs("here").values()} == {run}
    assert not list(tmp_path.glob(".*.tmp*"))
