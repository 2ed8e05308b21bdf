"""The tree of MLflow runs of a chain: the same whoever completes what, continued and not doubled, never in the way."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from chain_support import fake_run
from mlflow.tracking import MlflowClient

from pipeline.files import read_json
from pipeline.launch.paths import Member, RunPaths
from pipeline.launch.run import Run
from pipeline.launch.stages import Stage
from pipeline.launch.work import work


def work_on_all(run: Run) -> list[int]:
    return [work(run, stage, i, "local", None) for stage in run.stages for i in range(stage.elements)]


def told(root: Path) -> dict[str, tuple[str, str]]:
    """(id, status) by name: a stage's, or "parent"."""
    known = read_json(root / "mlflow.json")
    client = MlflowClient(known["tracking_uri"])
    ids = {"parent": known["parent_run_id"], **known["runs"]}
    parents = {client.get_run(run_id).data.tags.get("mlflow.parentRunId") for run_id in known["runs"].values()}
    assert parents == {known["parent_run_id"]}
    return {name: (run_id, client.get_run(run_id).info.status) for name, run_id in ids.items()}


def test_a_failed_run_goes_on_under_the_same_ids(tmp_path: Path) -> None:
    run = fake_run(tmp_path, mlflow=True)
    (tmp_path / "fail.check.1").touch()
    assert work_on_all(run) == [0, 0, 0, 0, 0, 2, 0, 0, 3]
    failed = told(tmp_path)
    assert {name: status for name, (_, status) in failed.items()} == {
        "parent": "FAILED", "make": "FINISHED", "check": "FAILED",
    }  # fmt: skip
    (tmp_path / "fail.check.1").unlink()
    assert set(work_on_all(run)) == {0}
    finished = told(tmp_path)
    assert {status for _, status in finished.values()} == {"FINISHED"}
    assert set(finished) == {"parent", "make", "check", "join"}
    assert {name: finished[name][0] for name in failed} == {name: run_id for name, (run_id, _) in failed.items()}
    client = MlflowClient(read_json(tmp_path / "mlflow.json")["tracking_uri"])
    info = client.get_run(finished["make"][0]).info
    markers = [read_json(run.paths.marker("make", i)) for i in range(4)]
    assert info.start_time == int(1000 * min(marker["started_at"] for marker in markers))
    assert info.end_time == int(1000 * max(marker["started_at"] + marker["seconds"] for marker in markers))


def test_nothing_fails_because_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run = fake_run(tmp_path, mlflow=True)
    (tmp_path / "mlflow.json").write_text("torn")
    with caplog.at_level(logging.WARNING):
        assert set(work_on_all(run)) == {0}
    assert "going on without it" in caplog.text


def test_each_member_of_a_sweep_has_its_tree_in_one_database(tmp_path: Path) -> None:
    plain = fake_run(tmp_path, mlflow=True).paths
    members = (Member("seed=1", ("seed=1",)), Member("seed=2", ("seed=2",)))

    def stage(name: str, needs: tuple[str, ...], elements: int, each: int) -> Stage:
        def proof(paths: RunPaths, element: int) -> Path:
            return paths.root / f"{name}.{element}"

        return Stage(
            name,
            needs,
            lambda p, i: ["touch", str(proof(p, i))],
            lambda p, i: [proof(p, i)],
            elements=elements,
            per_member=each,
        )

    stages = (stage("make", (), 1, 0), stage("score", ("make",), 4, 2), stage("compare", ("score",), 1, 0))
    run = Run(RunPaths(plain.root, plain.config, members), stages)
    assert set(work_on_all(run)) == {0}
    whole, one, two = told(tmp_path), told(tmp_path / "members/seed=1"), told(tmp_path / "members/seed=2")
    assert (set(whole), set(one), set(two)) == ({"parent", "make", "compare"}, {"parent", "score"}, {"parent", "score"})
    assert {status for tree in (whole, one, two) for _, status in tree.values()} == {"FINISHED"}
    assert len({tree["parent"][0] for tree in (whole, one, two)}) == 3
    databases = {path.parent for path in tmp_path.rglob("mlflow.db")}
    assert databases == {tmp_path}
    client = MlflowClient(read_json(tmp_path / "mlflow.json")["tracking_uri"])
    assert client.get_run(two["parent"][0]).data.params["seed"] == "2"
