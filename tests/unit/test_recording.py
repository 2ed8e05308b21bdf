"""MLflow's picture of a chain: the same whoever completes what, continued and not doubled, never in the way."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from chain_support import fake_run, write_plan
from mlflow.tracking import MlflowClient

from pipeline.launch import recording
from pipeline.launch.paths import Member, RunPaths
from pipeline.launch.run import Run
from pipeline.launch.stages import Stage
from pipeline.launch.work import work
from pipeline.tracking.directory import known_runs
from pipeline.tracking.mirror import only_mirror
from pipeline.typed_files import Reader


def work_on_all(run: Run) -> list[int]:
    return [work(run, stage, i, "local", None) for stage in run.stages for i in range(stage.elements)]


def told(run_dir: Path) -> tuple[str, str]:
    """(id, status) of the directory's own run."""
    known = known_runs(run_dir, Reader())
    assert known is not None
    uri = known["tracking_uri"]
    return known["parent_run_id"], MlflowClient(uri, uri).get_run(known["parent_run_id"]).info.status


def test_a_failed_run_goes_on_under_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("pipeline.tracking.live.CLOSE_SECONDS", 300.0)
    run = fake_run(tmp_path, mlflow=True)
    (tmp_path / "fail.check.1").touch()
    assert work_on_all(run) == [0, 0, 0, 0, 0, 2, 0, 0, 3]
    failed = told(tmp_path)
    assert failed[1] == "FAILED"
    (tmp_path / "fail.check.1").unlink()
    assert set(work_on_all(run)) == {0}
    assert told(tmp_path) == (failed[0], "FINISHED")


def test_nothing_fails_because_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("pipeline.tracking.live.CLOSE_SECONDS", 1.0)
    run = fake_run(tmp_path, mlflow=True)
    (tmp_path / "mlflow.json").write_text("torn")
    with caplog.at_level(logging.WARNING):
        assert set(work_on_all(run)) == {0}
    assert f"not everything reached MLflow; `neuclip sync {tmp_path}` sends the rest" in caplog.text


def test_one_of_thousands_and_one_that_somebody_sees_to_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = fake_run(tmp_path, mlflow=True), []
    monkeypatch.setattr(recording, "mirrored", lambda *arguments: asked.append(arguments))
    with only_mirror(tmp_path):
        for status in ("done", "failed", "stopped", "blocked"):
            recording.element_ended(run, run.stages[2], status)  # type: ignore[arg-type]
    recording.element_ended(run, run.stages[0], "done")
    recording.element_ended(run, run.stages[0], "blocked")
    assert asked == []


def test_each_member_of_a_sweep_is_a_run_in_one_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("pipeline.tracking.live.CLOSE_SECONDS", 300.0)
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
    write_plan(run)
    with monkeypatch.context() as quietly:
        quietly.setattr(recording, "is_mirrored", lambda root: True)
        assert work_on_all(run)[:-1] == [0] * 5
    (tmp_path / "stages/compare.0.json").unlink()
    assert set(work_on_all(run)) == {0}
    runs = [told(tmp_path), told(tmp_path / "members/seed=1"), told(tmp_path / "members/seed=2")]
    assert [status for _, status in runs] == ["FINISHED"] * 3
    assert len({run_id for run_id, _ in runs}) == 3
    assert [path.parent for path in tmp_path.rglob("mlflow.db")] == [tmp_path]
