"""One run in MLflow over all that happens to a run directory: lives, moves, deletions."""

from __future__ import annotations

import json
import shutil

from mlflow import MlflowClient

from pipeline.locks import exclusive
from pipeline.tracking.mirror import Sent
from tests.tracking_support import BATCH, advance, assert_arrived, begin_life, log, recipe, runs_of, status


def test_a_run_continues_over_its_lives(tmp_path, uri):
    """Killed, preempted and finished lives: one run, monotone steps, every point once, and it never stays RUNNING."""
    recipe(tmp_path, "loader.workers=1")
    begin_life(tmp_path)
    log(tmp_path, range(1, 9))
    with exclusive(tmp_path / "train/.lock", "training"):
        assert advance(tmp_path).running
        ids = runs_of(tmp_path)
        assert {status(uri, run_id) for run_id in ids.values()} == {"RUNNING"}
    advance(tmp_path)  # nobody holds the lock and there is no end: it was killed
    assert {status(uri, run_id) for run_id in ids.values()} == {"FAILED"}

    recipe(tmp_path, "loader.workers=7")
    life = begin_life(tmp_path, 6, nodes=["n7"], world_size=8)
    before = (tmp_path / "train/metrics.jsonl").read_bytes().splitlines()[:8]
    log(tmp_path, range(7, 12), start_step=6)  # steps 7 and 8 are passed again
    life.close("preempted")
    advance(tmp_path)
    assert {status(uri, run_id) for run_id in ids.values()} == {"KILLED"}
    client = MlflowClient(uri, uri)
    history = client.get_metric_history(ids["train"], "train/loss")
    assert [point.step for point in history] == [BATCH * step for step in range(1, 12)]
    assert [point.timestamp for point in history[:8]] == [int(json.loads(line)["time"] * 1000) for line in before]
    train = client.get_run(ids["train"]).data
    assert (train.params["loader.workers"], train.tags["changed.loader.workers"]) == ("1", "7")
    assert (train.tags["lives"], train.tags["nodes"], train.tags["world_size"]) == ("2", "n1, n2, n7", "16, 8")

    life = begin_life(tmp_path, 11)
    log(tmp_path, range(12, 14), start_step=11)
    life.close("finished")
    advance(tmp_path)
    assert {status(uri, run_id) for run_id in ids.values()} == {"FINISHED"}
    assert runs_of(tmp_path) == ids
    assert advance(tmp_path) == Sent()


def test_a_run_deleted_in_mlflow_stays_deleted_and_a_moved_directory_goes_on(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_dir = tmp_path / "here"
    recipe(run_dir)
    life = begin_life(run_dir)
    log(run_dir, range(1, 4))
    advance(run_dir)
    ids = runs_of(run_dir)
    moved = tmp_path / "there"
    shutil.move(run_dir, moved)
    uri = f"sqlite:///{moved}/mlflow.db"
    life = begin_life(moved, 3)
    log(moved, range(4, 6), start_step=3)
    life.close("finished")
    advance(moved)
    client = MlflowClient(uri, uri)
    assert_arrived(client, ids["train"], moved / "train/metrics.jsonl")
    client.delete_run(ids["train"])
    log(moved, range(6, 8), start_step=5)
    assert advance(moved).points == 0
    assert client.get_run(ids["train"]).info.lifecycle_stage == "deleted"
