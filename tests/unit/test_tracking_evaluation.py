"""Evaluations by hand: RUN/results among the directory's own runs, others in one per checkpoint and precision."""

import json

import pytest
import yaml

from pipeline.tracking.directory import known_runs
from pipeline.tracking.evaluation import record_evaluation
from pipeline.tracking.mirror import Mirror, only_mirror
from pipeline.tracking.mlflow import MlflowServer
from pipeline.typed_files import Reader

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


@pytest.fixture
def run_dir(tmp_path):
    """A run directory that is tracked, and the client that sees what it tracked."""
    root = tmp_path / "run"
    (root / "train").mkdir(parents=True)
    (root / "train/recipe.yaml").write_text(yaml.safe_dump({"name": "r", "tracking": {"models": False}}))
    with only_mirror(root):
        Mirror(root).advance()
    known = known_runs(root, Reader())
    return root, MlflowServer(known["tracking_uri"], known["experiment"])._client


def results(root, name, summary):
    out = root / name
    out.mkdir(exist_ok=True)
    (out / "aggregate.json").write_text(json.dumps(summary))
    record_evaluation(out, summary, anywhere=False)
    return out


def runs_of(client, checkpoint):
    (experiment,) = client.search_experiments(filter_string="name = 'neuclip'")
    return client.search_runs([experiment.experiment_id], f"tags.checkpoint_sha256 = '{checkpoint}'")


def test_results_of_a_run_directory_are_among_its_own_runs(run_dir):
    root, client = run_dir
    results(root, "results", SUMMARY)
    parent = client.get_run(known_runs(root, Reader())["parent_run_id"])
    assert EVALUATED.items() <= parent.data.metrics.items()
    results(root, "results", {**SUMMARY, "average": 0.6})
    parent = client.get_run(known_runs(root, Reader())["parent_run_id"])
    assert parent.data.metrics["eval/average"] == 0.6
    (child,) = runs_of(client, SUMMARY["checkpoint_sha256"])
    assert child.info.run_id == known_runs(root, Reader())["runs"]["evaluate"]
    assert (child.data.metrics["eval/average"], child.info.status) == (0.6, "FINISHED")


def test_another_folder_has_one_run_per_checkpoint_and_precision_below_the_same_parent(run_dir):
    root, client = run_dir
    other = {**SUMMARY, "checkpoint_sha256": "b" * 64, "partial_mean": 0.5}
    del other["average"]
    for _ in range(2):
        results(root, "other", other)
    (run,) = runs_of(client, other["checkpoint_sha256"])
    assert run.data.metrics == {**{k: v for k, v in EVALUATED.items() if k != "eval/average"}, "eval/partial_mean": 0.5}
    assert run.data.tags["mlflow.parentRunId"] == known_runs(root, Reader())["parent_run_id"]
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["aggregate.json"]
    results(root, "other", {**other, "precision": "bf16"})
    assert len(runs_of(client, other["checkpoint_sha256"])) == 2


def test_outside_of_a_run_directory_it_is_recorded_only_when_asked_for(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = results(tmp_path, "alone", SUMMARY)
    assert [path.name for path in out.iterdir()] == ["aggregate.json"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    record_evaluation(out, SUMMARY, anywhere=True)
    assert "MLflow at http://127.0.0.1:9 failed" in caplog.text
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    record_evaluation(out, SUMMARY, anywhere=True)
    client = MlflowServer(f"sqlite:///{out}/mlflow.db", "neuclip")._client
    assert runs_of(client, SUMMARY["checkpoint_sha256"])[0].data.metrics == EVALUATED
