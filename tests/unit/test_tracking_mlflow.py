"""MLflow itself, on SQLite and behind a real `mlflow server`: one run over all interruptions, every point
exactly once although trainer and server are killed; a server that is away costs a bounded wait at the end."""

import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.tracking.jsonl import JsonlTracker
from pipeline.tracking.mlflow import MlflowRuns, flatten, tracking_uri, valid_name
from pipeline.tracking.shipping import MlflowTracker, replay

EXPERIMENT = "tests"
PATIENCE = 120  # seconds, for processes that import mlflow on a busy machine


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An MLflow database made by two processes at once, which must agree on its one experiment."""
    path = tmp_path_factory.mktemp("mlflow") / "a run" / "mlflow.db"
    code = (
        "import sys; from pipeline.tracking.mlflow import MlflowRuns\n"
        f"MlflowRuns(sys.argv[1], {EXPERIMENT!r}).open('racer')"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{path}"]
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [racer.communicate()[1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], errors
    assert errors == ["", ""], "MLflow and alembic should keep quiet"
    with sqlite3.connect(path) as connection:
        query = "select count(*), count(distinct experiment_id) from runs where name = 'racer'"
        assert connection.execute(query).fetchone() == (2, 1)
    return path


@pytest.fixture(scope="module")
def runs(database):
    return MlflowRuns(f"sqlite:///{database}", EXPERIMENT)


@pytest.fixture
def run(runs):
    return runs.open("train")


@pytest.fixture
def spool(tmp_path):
    return tmp_path / "metrics.jsonl"


def log(spool, start_step, steps):
    tracker = JsonlTracker(spool, start_step)
    for step in steps:
        tracker.log({"train/loss": 1.0 / step, "train/tau": 0.07}, step, 256 * step)
    tracker.close("finished")


def history(database, run_id):
    """(metric, step, value) of every stored point, straight from the database."""
    with sqlite3.connect(database) as connection:
        query = "select key, step, value from metrics where run_uuid = ? order by key, step, timestamp"
        return connection.execute(query, (run_id,)).fetchall()


def all_points(steps):
    return [("train/loss", 256 * s, 1.0 / s) for s in steps] + [("train/tau", 256 * s, 0.07) for s in steps]


def status(database, run_id):
    with sqlite3.connect(database) as connection:
        return connection.execute("select status from runs where run_uuid = ?", (run_id,)).fetchone()[0]


def eventually(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited too long: {what}"
        time.sleep(0.2)


def test_a_tree_of_runs_with_parameters_that_stay(runs, database, tmp_path):
    config = {"name": "demo", "train": {"steps": 100, "betas": (0.9, 0.98)}, "note": "x" * 10_000}
    parent = runs.open("pipeline", params=config, tags={"objective": "neuclip"})
    child = runs.open("evaluate", parent_run_id=parent)
    assert runs.open("pipeline", run_id=parent, params={**config, "extra": 1}, tags={"attempt": "2"}) == parent
    runs.log_metrics(child, {"eval/acc@1": 0.5, "eval/nan": math.nan, "eval/inf": math.inf}, step=25_600_000_000)
    artifact = tmp_path / "plan.json"
    artifact.write_text("{}")
    runs.log_artifact(parent, artifact)
    runs.close(child, "failed")
    runs.close(parent, "preempted")

    data = runs._client.get_run(parent).data
    assert data.params["train.steps"] == "100"
    assert data.params["train.betas"] == "(0.9, 0.98)"
    assert data.params["extra"] == "1"
    assert data.params["note"] == "x" * 6000
    assert (data.tags["objective"], data.tags["attempt"], data.tags["host"]) == (
        "neuclip",
        "2",
        socket.gethostname(),
    )
    assert runs._client.get_run(child).data.tags["mlflow.parentRunId"] == parent
    assert (status(database, parent), status(database, child)) == ("KILLED", "FAILED")
    assert runs.last_steps(child) == dict.fromkeys(["eval/acc_1", "eval/nan", "eval/inf"], 25_600_000_000)
    stored = list((database.parent / "mlartifacts").rglob("plan.json"))
    assert len(stored) == 1


def test_more_parameters_than_one_request_takes(runs):
    params = {"section": {f"setting_{i}": i for i in range(250)}}
    assert len(runs._client.get_run(runs.open("wide", params=params)).data.params) == 250


def test_a_deleted_experiment_is_explained(runs, database):
    gone = MlflowRuns(f"sqlite:///{database}", "gone")
    run_id = gone.open("x")
    gone._client.delete_experiment(gone._client.get_run(run_id).info.experiment_id)
    with pytest.raises(UserError, match=r"'gone' at .* was deleted: restore it"):
        gone.open("y")


def test_a_killed_trainer_ends_as_failed_and_its_successor_continues_the_run(database, run, spool):
    log(spool, 0, range(1, 9))
    trainer = (
        "import os, signal, sys; from pathlib import Path\n"
        "from pipeline.tracking.shipping import MlflowTracker\n"
        "spool, *rest = sys.argv[1:]\n"
        "MlflowTracker(Path(spool), *rest); os.kill(os.getpid(), signal.SIGKILL)"
    )
    arguments = [str(spool), f"sqlite:///{database}", EXPERIMENT, run]
    killed = subprocess.run([sys.executable, "-c", trainer, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    eventually(lambda: status(database, run) == "FAILED", "the orphaned shipper closes the run")
    assert history(database, run) == all_points(range(1, 9))

    log(spool, 6, range(7, 11))  # from the checkpoint of step 6: steps 7 and 8 are passed again
    tracker = MlflowTracker(spool, f"sqlite:///{database}", EXPERIMENT, run, close_seconds=PATIENCE)
    eventually(lambda: len(history(database, run)) == 20, "points arrive while training goes on")
    assert status(database, run) == "RUNNING"
    log(spool, 10, range(11, 14))
    tracker.log({}, 13, 13)
    tracker.close("finished")
    assert history(database, run) == all_points(range(1, 14))
    assert status(database, run) == "FINISHED"


def test_a_server_that_never_answers_costs_a_bounded_wait_and_is_replayed(database, run, spool):
    log(spool, 0, range(1, 4))
    with socket.socket() as mute:  # takes connections and says nothing
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        mute.settimeout(PATIENCE)
        uri = f"http://127.0.0.1:{mute.getsockname()[1]}"
        tracker = MlflowTracker(spool, uri, EXPERIMENT, run, close_seconds=0.5)
        connection, _ = mute.accept()
        tracker.log({}, 3, 3)
        with pytest.raises(RuntimeError, match="the rest is in the spool"):
            tracker.close("finished")
        connection.close()
        with pytest.raises(RuntimeError, match="shipper ended"):
            tracker.log({}, 4, 4)
    assert replay(spool, f"sqlite:///{database}", EXPERIMENT, run) == 6
    assert replay(spool, f"sqlite:///{database}", EXPERIMENT, run) == 0
    assert history(database, run) == all_points(range(1, 4))


class Server:
    """A real `mlflow server` on the database, on one port over its lives."""

    def __init__(self, database: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        self._command = [*command, "--workers", "1", "--backend-store-uri", f"sqlite:///{database}"]
        self._process = None

    def start(self):
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = subprocess.Popen(
            self._command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        eventually(self._answers, "mlflow server comes up")

    def kill(self):
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _answers(self):
        with suppress(OSError):
            return urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200
        return False


@pytest.mark.slow
def test_a_server_killed_midway_and_restarted_gets_every_point_once(database, run, spool):
    server = Server(database)
    log(spool, 0, range(1, 4))
    try:
        server.start()
        tracker = MlflowTracker(spool, server.uri, EXPERIMENT, run, close_seconds=PATIENCE)
        eventually(lambda: len(history(database, run)) == 6, "points arrive")
        server.kill()
        log(spool, 3, range(4, 8))
        time.sleep(2)  # the shipper meets the dead server
        assert history(database, run) == all_points(range(1, 4))
        server.start()
        tracker.close("finished")
        assert history(database, run) == all_points(range(1, 8))
        assert status(database, run) == "FINISHED"
    finally:
        server.kill()


def test_where_runs_go(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(None, tmp_path) == "http://127.0.0.1:5000"
    assert tracking_uri("http://127.0.0.1:6000", tmp_path) == "http://127.0.0.1:6000"


def test_names_and_settings_are_put_in_the_form_that_mlflow_takes():
    assert valid_name("npn/residual p50-a.b_c") == "npn/residual p50-a.b_c"
    assert valid_name("<é>" + "x" * 300) == "___" + "x" * 247
    assert dict(flatten({"a": {"b": {"c": 1}, "d": None}, "e": [1, 2]})) == {
        "a.b.c": 1,
        "a.d": None,
        "e": [1, 2],
    }
