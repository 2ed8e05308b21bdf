"""A run directory that is moved, or copied, has its MLflow files with it, and leaves the others alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.tracking.directory import uri_of
from pipeline.tracking.mlflow import MlflowServer


def a_later_process(run: Path) -> MlflowServer:
    """mlflow remembers, for as long as a process lives, where the files of a run go."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()
    return MlflowServer(uri_of(run / "mlflow.db"), "birds")


def test_files_of_a_copied_run_go_to_the_copy(tmp_path: Path) -> None:
    first, copy, moved = tmp_path / "first", tmp_path / "a copy", tmp_path / "moved"
    first.mkdir()
    server = MlflowServer(uri_of(first / "mlflow.db"), "birds")
    run = server.create("directory", "", "birds", None, None)
    server.log_artifacts(run, {"one.txt": b"1"})
    (first / "model").mkdir()
    (first / "model" / "weights").write_bytes(b"w")
    model = server.log_model(run, first / "model", "5eed")
    shutil.copytree(first, copy)
    of_copy = a_later_process(copy)
    of_copy.log_artifacts(run, {"two.txt": b"2"})
    assert of_copy.read_artifact(run, "one.txt") == b"1"
    assert {path.name for path in (copy / "mlartifacts").rglob("*.txt")} == {"one.txt", "two.txt"}
    assert {path.name for path in (first / "mlartifacts").rglob("*.txt")} == {"one.txt"}
    first.rename(moved)
    of_moved = a_later_process(moved)
    of_moved.log_artifacts(run, {"three.txt": b"3"})
    assert of_moved.read_artifact(run, "three.txt") == b"3"
    assert of_moved.log_model(run, moved / "model", "5eed") == model
    place = str(of_moved._client.get_logged_model(model).artifact_location)
    assert place.startswith(f"{moved.as_uri()}/")
    new = of_moved.create("directory", "train", "train", run, None)
    of_moved.log_artifacts(new, {"four.txt": b"4"})
    assert {path.name for path in (moved / "mlartifacts").rglob("*.txt")} == {"one.txt", "three.txt", "four.txt"}
    assert not first.exists()
