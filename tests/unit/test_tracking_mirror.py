"""What MLflow has after an advance, by its own client, on SQLite and behind a real `mlflow server`."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from pipeline.locks import exclusive
from pipeline.tracking.jsonl import JsonlTracker
from pipeline.tracking.mirror import Sent
from tests.report_support import HOSTILE
from tests.tracking_support import (
    BATCH,
    PRINT,
    advance,
    assert_arrived,
    attempt,
    begin_life,
    exported,
    log,
    plan,
    recipe,
    results,
    runs_of,
    status,
)

STAGES = {"plan": 1, "download": 2, "manifest": 1, "train": 1, "export": 1, "evaluate": 1, "report": 1}


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
    (checkpoint / "COMPLETE").write_text(
        json.dumps({"files": {name: {"bytes": size, "sha256": "0"} for name, size in (("a", 30), ("b", 12))}})
    )
    exported(run_dir)
    results(run_dir)
    (run_dir / "report.html").write_text("<html>")
    (run_dir / "figures").mkdir()
    (run_dir / "figures/loss.png").write_bytes(b"png")
    (run_dir / "figures/.tau.png.17.tmp").write_bytes(b"half")

    sent = advance(run_dir)
    assert (sent.runs, sent.models) == (4, 1)
    assert advance(run_dir) == Sent()

    client, ids = MlflowClient(uri, uri), runs_of(run_dir)
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

    inputs = {key: run.inputs.dataset_inputs for key, run in runs.items()}
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
    assert (Path(folder) / "open_clip_model.safetensors").read_bytes() == b"ab" * 3200
    links = os.stat(run_dir / "model/open_clip_model.safetensors").st_nlink
    assert links == (2 if uri.startswith("sqlite") else 1), "beside the database it is the same file"


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

    client, ids = MlflowClient(local, local), runs_of(tmp_path)
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


def test_every_checkpoint_that_is_evaluated_has_a_run_of_its_own(tmp_path, local):
    """It is evaluated, trained on, exported and evaluated anew: what was said of the first one stays as it is."""
    plan(tmp_path, {"train": 1, "export": 1, "evaluate": 2})
    at = time.time()
    for step, weights, average in ((9, "ab" * 32, 0.5), (18, "cd" * 32, 0.6)):
        for stage in ("train", "export"):
            attempt(tmp_path, stage, 0, "done", at=at)
        exported(tmp_path, weights, step)
        os.utime(tmp_path / "model/export.json", (at + 1, at + 1))
        advance(tmp_path)  # nothing of these weights yet: neither a run nor scores that are others'
        known = runs_of(tmp_path)
        assert "evaluate" not in known
        attempt(tmp_path, "evaluate", 0, None, at=at + 2)
        with exclusive(tmp_path / "stages/evaluate.0.lock", "evaluating"):
            advance(tmp_path)
            assert status(local, runs_of(tmp_path)["evaluate"]) == "RUNNING"
        results(tmp_path, average, weights)
        for element in range(2):
            attempt(tmp_path, "evaluate", element, "done", at=at + 3)
        advance(tmp_path)
        assert advance(tmp_path) == Sent()
        at += 10
    client, ids = MlflowClient(local, local), runs_of(tmp_path)
    parent = client.get_run(ids[""])
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{ids['']}'")
    evaluations = sorted(
        (run for run in children if run.info.run_name.startswith("evaluate")), key=lambda r: r.info.run_name
    )
    assert [run.info.run_name for run in evaluations] == [
        f"evaluate demo {tmp_path.name} step-00000009",
        f"evaluate demo {tmp_path.name} step-00000018",
    ]
    assert [run.data.metrics["eval/average"] for run in evaluations] == [0.5, 0.6]
    assert [run.data.tags["checkpoint_sha256"] for run in evaluations] == ["ab" * 32, "cd" * 32]
    assert [run.info.status for run in evaluations] == ["FINISHED", "FINISHED"]
    assert evaluations[1].info.start_time - evaluations[0].info.start_time == pytest.approx(10_000, abs=10)
    history = [(point.step, point.value) for point in client.get_metric_history(ids[""], "eval/average")]
    assert history == [(9 * BATCH, 0.5), (18 * BATCH, 0.6)]
    assert ids["evaluate"] == evaluations[1].info.run_id


def test_an_evaluation_that_was_killed_and_given_up_does_not_stay_running(tmp_path, local):
    plan(tmp_path, {"export": 1, "evaluate": 1})
    exported(tmp_path)
    attempt(tmp_path, "evaluate", 0, None, at=time.time() + 1)
    with exclusive(tmp_path / "stages/evaluate.0.lock", "evaluating"):
        advance(tmp_path)
    first = runs_of(tmp_path)["evaluate"]
    exported(tmp_path, "cd" * 32, 18)
    os.utime(tmp_path / "model/export.json", (time.time() + 60,) * 2)
    advance(tmp_path)
    assert status(local, first) == "KILLED"


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
    train = client.get_run(runs_of(run_dir)["train"]).data
    assert [point.step for point in client.get_metric_history(runs_of(run_dir)["train"], "ok")] == [1, 2]
    assert {"ok", "a/b", "a", "_", "a_b", "inf", "huge"} <= set(train.metrics)
    parent = client.get_run(runs_of(run_dir)[""])
    assert HOSTILE in parent.data.params["name"]
    assert len(parent.data.params["name"]) == 6000
    assert HOSTILE in parent.data.tags["mlflow.note.content"]
    assert HOSTILE in parent.info.run_name or len(HOSTILE) > 250
