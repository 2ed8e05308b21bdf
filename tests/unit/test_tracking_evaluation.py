"""One MLflow run per evaluated checkpoint, whoever evaluates it; a server that is away costs a warning."""

import json

import pytest

from pipeline.config.schema import RunConfig, TrainConfig
from pipeline.tracking.evaluation import evaluation_metrics, evaluation_tags, record_evaluation
from pipeline.tracking.mlflow import MlflowRuns
from pipeline.tracking.run_tree import RunTree

SUMMARY = {
    "model": "tiny",
    "checkpoint_sha256": "a" * 64,
    "model_config_sha256": "c" * 64,
    "precision": "fp32",
    "tasks": 2,
    "average": 0.5,
    "groups": {"vtab": {"tasks": 1, "mean": 0.25}},
    "scores": {"vtab/pets": {"score": 0.25}, "cars": {"score": 0.75}},
}
EVALUATED = {"eval/vtab/pets": 0.25, "eval/cars": 0.75, "eval/group/vtab": 0.25, "eval/average": 0.5}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run directory whose chain has evaluated its model, and the client that sees what it tracked."""
    root = tmp_path_factory.mktemp("run")
    tree = RunTree(root, RunConfig(name="r", train=TrainConfig(steps=1)))
    run_id = tree.open("evaluate")
    tree.record("evaluate", evaluation_metrics(SUMMARY), [], evaluation_tags(SUMMARY))
    tree.close("evaluate", "finished")
    return root, run_id, MlflowRuns(tree.tracking_uri, tree.experiment)._client


def results(root, name, summary):
    out = root / name
    out.mkdir(exist_ok=True)
    (out / "aggregate.json").write_text(json.dumps(summary))
    record_evaluation(out, summary, anywhere=False)
    return out


def runs_of(client, checkpoint):
    (experiment,) = client.search_experiments(filter_string="name = 'neuclip'")
    return client.search_runs([experiment.experiment_id], f"tags.checkpoint_sha256 = '{checkpoint}'")


def test_a_checkpoint_that_the_chain_has_evaluated_keeps_its_run(run_dir):
    root, run_id, client = run_dir
    assert client.get_run(run_id).data.metrics == EVALUATED
    results(root, "again", {**SUMMARY, "average": 0.6})
    (run,) = runs_of(client, SUMMARY["checkpoint_sha256"])
    assert run.info.run_id == run_id
    assert run.data.metrics["eval/average"] == 0.6
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run_id)] == ["aggregate.json"]


def test_another_checkpoint_or_precision_has_a_run_of_its_own_below_the_same_parent(run_dir):
    root, run_id, client = run_dir
    other = {**SUMMARY, "checkpoint_sha256": "b" * 64, "partial_mean": 0.5}
    del other["average"]
    for _ in range(2):
        results(root, "other", other)
    (run,) = runs_of(client, other["checkpoint_sha256"])
    assert run.data.metrics == {**{k: v for k, v in EVALUATED.items() if k != "eval/average"}, "eval/partial_mean": 0.5}
    parent = client.get_run(run_id).data.tags["mlflow.parentRunId"]
    assert run.data.tags["mlflow.parentRunId"] == parent
    results(root, "other", {**SUMMARY, "precision": "bf16"})
    assert len(runs_of(client, SUMMARY["checkpoint_sha256"])) == 2


def test_outside_of_a_run_directory_it_is_recorded_only_when_asked_for(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = results(tmp_path, "alone", SUMMARY)
    assert [path.name for path in out.iterdir()] == ["aggregate.json"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    record_evaluation(out, SUMMARY, anywhere=True)
    assert "MLflow at http://127.0.0.1:9 failed" in caplog.text
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    record_evaluation(out, SUMMARY, anywhere=True)
    client = MlflowRuns(f"sqlite:///{out}/mlflow.db", "neuclip")._client
    assert runs_of(client, SUMMARY["checkpoint_sha256"])[0].data.metrics == EVALUATED
