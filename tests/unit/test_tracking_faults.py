"""Requests that are lost, servers that fail, stores that refuse: each point arrives once, and nothing twice."""

from __future__ import annotations

import json
import random

import pytest
from mlflow import MlflowClient

from pipeline.errors import UserError
from pipeline.tracking import mirror as mirror_module
from pipeline.tracking.mirror import Mirror, Sent, only_mirror
from pipeline.tracking.mlflow import MlflowServer
from tests.tracking_support import (
    Proxy,
    advance,
    assert_arrived,
    begin_life,
    exported,
    log,
    recipe,
    results,
    runs_of,
    status,
)


class Flaky(MlflowServer):
    """Fails before or after it does what it is asked for, every other time or so."""

    rng = random.Random(0)

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name not in ("create", "log_points", "log_params", "set_tags", "set_status", "log_datasets", "log_model"):
            return found

        def call(*arguments):
            when = Flaky.rng.choice(["before", "after", "never", "never"])
            if when == "before":
                raise ConnectionError("down")
            result = found(*arguments)
            if when == "after":
                raise TimeoutError("the reply was lost")
            return result

        return call


@pytest.mark.parametrize("seed", range(3))
def test_lost_requests_and_lost_replies_leave_no_trace(tmp_path, local, monkeypatch, seed):
    """No run or model is made twice, no point comes twice, whatever was lost, wherever the mirror was killed."""
    monkeypatch.setattr(mirror_module, "MlflowServer", Flaky)
    monkeypatch.setattr(Flaky, "rng", random.Random(seed))
    recipe(tmp_path)
    life = begin_life(tmp_path)
    log(tmp_path, range(1, 700))
    life.close("finished")
    exported(tmp_path)
    results(tmp_path)
    with only_mirror(tmp_path):
        mirror = Mirror(tmp_path)
        for _ in range(300):
            try:
                if not mirror.advance().problems:
                    break
            except OSError:
                if Flaky.rng.random() < 0.3:
                    mirror = Mirror(tmp_path)
        else:
            raise AssertionError("never got through")
    monkeypatch.setattr(mirror_module, "MlflowServer", MlflowServer)
    assert advance(tmp_path) == Sent()
    client, ids = MlflowClient(local, local), runs_of(tmp_path)
    assert_arrived(client, ids["train"], tmp_path / "train/metrics.jsonl")
    experiment = client.get_run(ids[""]).info.experiment_id
    directory = json.loads((tmp_path / "mlflow.json").read_text())["id"]
    found = client.search_runs([experiment], f"tags.`neuclip.directory` = '{directory}'")
    assert {run.info.run_id for run in found} == set(ids.values())
    assert len(client.search_logged_models([experiment], f"source_run_id = '{ids['']}'")) == 1
    assert {run.info.status for run in found} == {"FINISHED"}


def test_over_a_network_that_fails_in_every_way_each_point_arrives_once(tmp_path, stores, monkeypatch):
    """Answers of 500, requests that hang, replies that are lost, before a real server."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    rng = random.Random(0)
    faults = iter(["500", "hang", "", "lost", "", "", "lost", *rng.choices(["", "", "", "lost", "500"], k=20)])
    proxy = Proxy(stores["server"], lambda: next(faults, ""))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    recipe(tmp_path)
    life = begin_life(tmp_path)
    log(tmp_path, range(1, 1300))  # three requests
    life.close("finished")
    with only_mirror(tmp_path):
        mirror, failures = Mirror(tmp_path), 0
        for _ in range(60):
            try:
                if not mirror.advance().problems:
                    break
            except Exception:
                pass
            failures += 1
        else:
            raise AssertionError("never got through")
    proxy.close()
    assert failures >= 4
    assert all(proxy.seen[fault] for fault in ("", "500", "hang", "lost"))
    client, ids = MlflowClient(stores["server"], stores["server"]), runs_of(tmp_path)
    assert_arrived(client, ids["train"], tmp_path / "train/metrics.jsonl")
    directory = json.loads((tmp_path / "mlflow.json").read_text())["id"]
    experiment = client.get_run(ids[""]).info.experiment_id
    found = client.search_runs([experiment], f"tags.`neuclip.directory` = '{directory}'")
    assert {run.info.run_id for run in found} == set(ids.values())


def test_files_that_have_no_place_hold_up_nothing_else(tmp_path, local, monkeypatch):
    """As where the credentials for the store of artifacts are missing."""

    def refuse(*arguments):
        raise OSError("access denied")

    recipe(tmp_path)
    life = begin_life(tmp_path)
    log(tmp_path, range(1, 4))
    life.close("finished")
    monkeypatch.setattr(MlflowServer, "log_artifacts", refuse)
    with only_mirror(tmp_path):
        sent = Mirror(tmp_path).advance()
    assert sent.problems == ["files of train: access denied"]
    ids = runs_of(tmp_path)
    assert_arrived(MlflowClient(local, local), ids["train"], tmp_path / "train/metrics.jsonl")
    assert status(local, ids["train"]) == "FINISHED"
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local)
    assert advance(tmp_path).artifacts == 2


def test_what_cannot_be_mirrored_says_why(tmp_path, local):
    with pytest.raises(UserError, match=r"neither plan\.json nor train/recipe\.yaml"):
        advance(tmp_path)
    recipe(tmp_path, "tracking.mlflow=false")
    with pytest.raises(UserError, match=r"tracking is off in its recipe \(tracking.mlflow=false\)"):
        advance(tmp_path)
    recipe(tmp_path, "tracking.experiment=gone")
    advance(tmp_path)
    client = MlflowClient(local, local)
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(UserError, match=r"'gone' at .* was deleted: restore it"):
        advance(tmp_path)
    with only_mirror(tmp_path), pytest.raises(UserError, match=r"in use by process"):
        advance(tmp_path)
