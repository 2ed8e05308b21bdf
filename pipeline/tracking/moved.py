"""A run directory that was moved or copied takes its MLflow files along; MLflow's database keeps their old place."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

ARTIFACTS = "mlartifacts"  # beside the database
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
BUSY_SECONDS = 30.0


def artifacts_beside(database: Path) -> Path:
    """Where the files of runs in this SQLite file lie."""
    return database.with_name(ARTIFACTS)


def follow(database: Path) -> None:
    """Have the database name the files that lie beside it, not those where it was before, which may be another's.

    One process at a time may do this. Raises sqlite3.Error where it is no database of MLflow's.
    """
    here = artifacts_beside(database)
    if not (database.is_file() and here.is_dir()):
        return
    with closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection, connection:
        named = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (there,) in named:
            if there.startswith("file://") and there.endswith(f"/{ARTIFACTS}") and there != here.as_uri():
                for table, column in _PLACES:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (here.as_uri(), len(there) + 1, len(there) + 1, f"{there}/"),
                    )
                connection.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (here.as_uri(), there)
                )
