"""What MLflow has after an advance, by its own client, on SQLite and behind a real `mlflow server`."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from pipeline.errors import UserError
from pipeline.locks import exclusive
from pipeline.tracking import mirror as mirror_module
from pipeline.tracking.jsonl import JsonlTracker
from pipeline.tracking.mirror import Mirror, Sent, only_mirror
from pipeline.tracking.mlflow import MlflowServer
from tests.report_support import HOSTILE
from tests.tracking_support import (
    BATCH,
    PRINT,
    Proxy,
    Server,
    assert_arrived,
    attempt,
    begin_life,
    log,
    plan,
    recipe,
    results,
)

STAGES = {"plan": 1, "download": 2, "manifest": 1, "train": 1, "export": 1, "evaluate": 1, "report": 1}


@pytest.fixture(scope="session")
def stores(tmp_path_factory):
    """One address of each kind: SQLite, and a server before another SQLite."""
    folder = tmp_path_factory.mktemp("mlflow")
    server = Server(folder / "server", f"sqlite:///{folder}/behind.db")
    server.start()
    yield {"sqlite": f"sqlite:///{folder}/mlflow.db", "server": server.uri}
    server.kill()


@pytest.fixture(params=["sqlite", "server"])
def uri(stores, request, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stores[request.param])
    return stores[request.param]


@pytest.fixture
def local(stores, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stores["sqlite"])
    return stores["sqlite"]


def advance(run_dir: Path) -> Sent:
    with only_mirror(run_dir):
        sent = Mirror(run_dir).advance()
    assert sent.problems == []
    return sent


def runs_of(run_dir: Path, uri: str) -> dict[str, str]:
    known = json.loads((run_dir / "mlflow.json").read_text())
    return {"": known["parent_run_id"], **known["runs"]}


def status(uri: str, run_id: str) -> str:
    return MlflowClient(uri, uri).get_run(run_id).info.status


def test_a_whole_run_is_there_and_a_second_look_sends_nothing(tmp_path, uri):
    """Tree, states, parameters, tags, datasets, points, files, the model and its entry in the registry."""
    run_dir = tmp_path / "birds"
    plan(run_dir, STAGES, "tracking.register_as=birds", "model.weights=openai")
    for element in range(2):
        attempt(run_dir, "download", element, "stopped", {"id": "17", "nodes": "n1"})
        attempt(run_dir, "download", element, "done", {"id": "18", "nodes": "n2"}, host="n2")
    for stage in ("plan", "manifest", "train", "export", "evaluate", "report"):
        attempt(run_dir, stage, 0, "done", {"id": f"2{stage[0]}", "nodes": "n3"})
    corpus = run_dir / "corpora/demo"
    corpus.mkdir(parents=True)
    counts = {"rows": 9, "ok": 7, "outcomes": {"ok": 7, "http_404": 2}, "fingerprint": PRINT, "licence": "CC0"}
    (corpus / "manifest.json").write_text(json.dumps(counts))
    config = recipe(run_dir, "train.epochs=3", "model.weights=openai")
    life = begin_life(run_dir, commit="c0ffee")
    log(run_dir, range(1, 10))
    node = JsonlTracker(run_dir / "train/system/node_1.jsonl")
    node.log({"system/node_1/cpu_utilization_percentage": 12.5}, 3, 3 * BATCH)
    life.log({}, 9, 9 * BATCH)
    life.close("finished")
    (run_dir / "train/summary.json").write_text(json.dumps({"final_loss": 0.25, "samples_seen": 9 * BATCH}))
    checkpoint = run_dir / "train/checkpoints/step-00000009"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMPLETE").write_text(json.dumps({"files": {"a": {"bytes": 30}, "b": {"bytes": 12}}}))
    results(run_dir)
    (run_dir / "report.html").write_text("<html>")
    (run_dir / "figures").mkdir()
    (run_dir / "figures/loss.png").write_bytes(b"png")

    sent = advance(run_dir)
    assert (sent.runs, sent.models) == (4, 1)
    assert advance(run_dir) == Sent()

    client, ids = MlflowClient(uri, uri), runs_of(run_dir, uri)
    assert set(ids) == {"", "ingest", "train", "evaluate"}
    runs = {key: client.get_run(run_id) for key, run_id in ids.items()}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs.values()} == {None, ids[""]}
    assert runs["ingest"].info.start_time == 1_000_000
    assert runs["ingest"].info.end_time == 2_001_000

    assert runs["train"].data.params["train.epochs"] == "3.0"
    assert runs["train"].data.params["optimizer.betas"] == str(config["optimizer"]["betas"])
    assert not any(name.startswith("tracking.") for name in runs[""].data.params)
    tags = runs["train"].data.tags
    assert (tags["objective"], tags["corpus"], tags["corpus_fingerprint"]) == ("neuclip", "birds", PRINT)
    assert (tags["nodes"], tags["world_size"], tags["parent_checkpoint"]) == ("n1, n2", "16", "openai")
    assert (tags["job.id"], tags["job.nodes"]) == ("2t", "n3")
    assert tags["mlflow.source.git.commit"] == "c0ffee"
    assert (runs["ingest"].data.tags["job.id"], runs["ingest"].data.tags["host"]) == ("2p, 17, 18, 2m", "n1, n2")

    inputs = {run.data.tags["neuclip.key"]: run.inputs.dataset_inputs for run in runs.values()}
    (trained_on,) = (entry.dataset for entry in inputs["train"])
    assert (trained_on.name, trained_on.digest) == ("birds", PRINT[:36])
    assert json.loads(trained_on.source) == {"uri": "s3://corpora/birds"}
    assert [entry.dataset.name for entry in inputs["evaluate"]] == ["imagenet"]
    assert [entry.dataset.name for entry in inputs["ingest"]] == ["demo"]

    assert_arrived(client, ids["train"], run_dir / "train/metrics.jsonl")
    assert_arrived(client, ids["train"], run_dir / "train/system/node_1.jsonl")
    assert runs["ingest"].data.metrics == {
        "data/rows": 9, "data/ok": 7, "data/outcome/ok": 7, "data/outcome/http_404": 2
    }  # fmt: skip
    scores = {"eval/average": 0.5, "eval/group/natural": 0.5, "eval/imagenet": 0.5}
    assert runs["evaluate"].data.metrics == scores
    assert runs[""].data.metrics == {**scores, "train/loss": 0.25}
    assert client.get_metric_history(ids["evaluate"], "eval/average")[0].step == 9 * BATCH

    def artifacts(key, folder=None):
        return {entry.path for entry in client.list_artifacts(ids[key], folder) if not entry.path.startswith("neuclip")}

    assert artifacts("") == {"recipe.yaml", "plan.json", "report.html", "figures"}
    assert artifacts("", "figures") == {"figures/loss.png"}
    assert artifacts("ingest") == {"manifest.json"}
    assert artifacts("train") == {"recipe.yaml", "summary.json", "lives.jsonl", "checkpoints.json"}
    assert artifacts("evaluate") == {"aggregate.json", "imagenet.json"}
    index = json.loads(Path(client.download_artifacts(ids["train"], "checkpoints.json", str(tmp_path))).read_text())
    assert [(entry["path"], entry["bytes"]) for entry in index] == [(str(checkpoint), 42)]

    version = client.get_model_version_by_alias("birds", "newest")
    assert (version.run_id, version.tags["eval/average"]) == (ids[""], "0.5")
    folder = download_artifacts("models:/birds@newest", dst_path=str(tmp_path / "model"), tracking_uri=uri)
    assert (Path(folder) / "open_clip_model.safetensors").read_bytes() == b"weights" * 100


def test_a_run_continues_over_its_lives(tmp_path, uri):
    """Killed, preempted and finished lives: one run, monotone steps, every point once, and it never stays RUNNING."""
    recipe(tmp_path, "loader.workers=1")
    begin_life(tmp_path)
    log(tmp_path, range(1, 9))
    with exclusive(tmp_path / "train/.lock", "training"):
        assert advance(tmp_path).running
        ids = runs_of(tmp_path, uri)
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
    assert runs_of(tmp_path, uri) == ids
    assert advance(tmp_path) == Sent()


def test_members_of_a_sweep_are_children_with_children(tmp_path, local):
    members = ["objective=neuclip,seed=0", "objective=openclip,seed=0"]
    plan(tmp_path, STAGES, members=members)
    for stage in ("plan", "manifest"):
        attempt(tmp_path, stage, 0, "done")
    for element in range(2):
        attempt(tmp_path, "download", element, "done")
    attempt(tmp_path, "train", 0, "done")
    attempt(tmp_path, "train", 1, "failed")
    attempt(tmp_path, "export", 1, "blocked")
    for name in members:
        life = begin_life(tmp_path / "members" / name)
        recipe(tmp_path / "members" / name, *name.split(","))
        log(tmp_path / "members" / name, range(1, 4))
        life.close("finished" if "neuclip" in name else "failed")
    advance(tmp_path / "members" / members[0])  # as this member's trainer does: the sweep is one thing

    client, ids = MlflowClient(local, local), runs_of(tmp_path, local)
    assert set(ids) == {"", "ingest"} | {f"members/{m}{part}" for m in members for part in ("", "/train")}
    for name, objective, state in zip(members, ("neuclip", "openclip"), ("SCHEDULED", "FAILED"), strict=True):
        member, train = (client.get_run(ids[f"members/{name}{part}"]) for part in ("", "/train"))
        assert member.data.tags["mlflow.parentRunId"] == ids[""]
        assert train.data.tags["mlflow.parentRunId"] == ids[f"members/{name}"]
        assert member.info.run_name == name
        assert member.data.params["objective"] == train.data.tags["objective"] == objective
        assert member.info.status == state
        assert_arrived(client, train.info.run_id, tmp_path / "members" / name / "train/metrics.jsonl")
    assert status(local, ids[""]) == "FAILED"
    assert status(local, ids[f"members/{members[0]}/train"]) == "FINISHED"
    assert not (tmp_path / "members" / members[0] / "mlflow.json").exists()


def test_hostile_names_and_values_arrive_as_text(tmp_path, uri):
    ugly = f"{HOSTILE}\nnext 'line' \"quoted\" \0 \ud800" + "x" * 10_000
    run_dir = tmp_path / "<b>it's</b>"
    plan(run_dir, {"train": 1})
    document = json.loads((run_dir / "plan.json").read_text())
    document["config"] |= {"name": ugly, "description": ugly, "objectives": {ugly: {"../": ugly, "/a//b": 1, "": 2}}}
    (run_dir / "plan.json").write_text(json.dumps(document))
    attempt(run_dir, "train", 0, "failed", {ugly: ugly})
    life = begin_life(run_dir, commit=ugly)
    life.close("failed")
    names = ["ok", "a/../b", "/a", "a//b", "..", "", " ", "a@b", "a#b", ugly]
    tracker = JsonlTracker(run_dir / "train/metrics.jsonl")
    for step in (1, 2):
        tracker.log(dict.fromkeys(names, math.nan) | {"inf": math.inf, "huge": 1e308}, step, step)
    advance(run_dir)
    assert advance(run_dir) == Sent()
    client = MlflowClient(uri, uri)
    train = client.get_run(runs_of(run_dir, uri)["train"]).data
    assert [point.step for point in client.get_metric_history(runs_of(run_dir, uri)["train"], "ok")] == [1, 2]
    assert {"ok", "a/b", "a", "_", "a_b", "inf", "huge"} <= set(train.metrics)
    parent = client.get_run(runs_of(run_dir, uri)[""])
    assert HOSTILE in parent.data.params["name"]
    assert len(parent.data.params["name"]) == 6000
    assert HOSTILE in parent.data.tags["mlflow.note.content"]
    assert HOSTILE in parent.info.run_name or len(HOSTILE) > 250


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
    client, ids = MlflowClient(local, local), runs_of(tmp_path, local)
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
    client, ids = MlflowClient(stores["server"], stores["server"]), runs_of(tmp_path, proxy.uri)
    assert_arrived(client, ids["train"], tmp_path / "train/metrics.jsonl")
    directory = json.loads((tmp_path / "mlflow.json").read_text())["id"]
    experiment = client.get_run(ids[""]).info.experiment_id
    found = client.search_runs([experiment], f"tags.`neuclip.directory` = '{directory}'")
    assert {run.info.run_id for run in found} == set(ids.values())


def test_a_run_deleted_in_mlflow_stays_deleted_and_a_moved_directory_goes_on(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_dir = tmp_path / "here"
    recipe(run_dir)
    life = begin_life(run_dir)
    log(run_dir, range(1, 4))
    advance(run_dir)
    ids = runs_of(run_dir, "")
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
    ids = runs_of(tmp_path, local)
    assert_arrived(MlflowClient(local, local), ids["train"], tmp_path / "train/metrics.jsonl")
    assert status(local, ids["train"]) == "FINISHED"
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local)
    assert advance(tmp_path).artifacts == 2
