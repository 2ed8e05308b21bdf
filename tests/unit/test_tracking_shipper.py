"""The process that ships while others work: a killed parent, a server that never answers, one shipper at a time; and
`neuclip sync`, which sends what is left."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from pipeline.cli import main
from pipeline.config.schema import TrackingConfig
from pipeline.locks import exclusive
from pipeline.tracking.live import Shipper, mirrored
from pipeline.tracking.mirror import Mirror, only_mirror
from tests.tracking_support import BATCH, PATIENCE, assert_arrived, begin_life, eventually, log, recipe

TRAINER = """
import os, signal, sys, time
from pathlib import Path
from pipeline.locks import exclusive
from pipeline.tracking.live import Shipper
from tests.tracking_support import begin_life, log
run = Path(sys.argv[1])
with exclusive(run / "train/.lock", "training"):
    begin_life(run)
    log(run, range(1, 9))
    Shipper(run)
    while not (run / "mlflow.json").exists():
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)
"""

HOLDER = """
import sys, time
from pathlib import Path
from pipeline.tracking.mirror import only_mirror
with only_mirror(Path(sys.argv[1])):
    print("x", end="", flush=True)
    time.sleep(2)
"""


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """Its MLflow is its own SQLite file."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recipe(tmp_path)
    return tmp_path


def client_of(run_dir):
    uri = f"sqlite:///{run_dir}/mlflow.db"
    return MlflowClient(uri, uri)


def train_id(run_dir):
    file = run_dir / "mlflow.json"
    return json.loads(file.read_text()).get("runs", {}).get("train") if file.exists() else None


def status(run_dir):
    return client_of(run_dir).get_run(train_id(run_dir)).info.status


def test_a_killed_trainer_ends_as_failed_and_its_successor_continues_the_run(run_dir):
    killed = subprocess.run([sys.executable, "-c", TRAINER, str(run_dir)], check=False)
    assert killed.returncode == -signal.SIGKILL
    eventually(lambda: train_id(run_dir) is not None and status(run_dir) == "FAILED", "the orphan closes the run")
    run_id = train_id(run_dir)
    assert_arrived(client_of(run_dir), run_id, run_dir / "train/metrics.jsonl")

    with exclusive(run_dir / "train/.lock", "training"):
        life = begin_life(run_dir, 6)
        log(run_dir, range(7, 11), start_step=6)  # from the checkpoint of step 6: steps 7 and 8 are passed again
        shipper = Shipper(run_dir, close_seconds=PATIENCE)

        def steps():
            return [point.step // BATCH for point in client_of(run_dir).get_metric_history(run_id, "train/loss")]

        eventually(lambda: steps() == [*range(1, 11)], "points arrive while training goes on")
        assert status(run_dir) == "RUNNING"
        second = Shipper(run_dir, close_seconds=PATIENCE)  # another one waits for its turn, and goes in peace
        second.close("finished")
        log(run_dir, range(11, 14), start_step=10)
        eventually(lambda: steps() == [*range(1, 14)], "and so do those of every second")
        shipper.log({}, 13, 13)
        life.close("finished")
        shipper.close("finished")
    # At once, unless the orphan still shipped and was left the rest.
    eventually(lambda: status(run_dir) == "FINISHED", "the run is closed")
    assert train_id(run_dir) == run_id


def test_a_server_that_never_answers_costs_a_bounded_wait_and_sync_sends_it(run_dir, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    life = begin_life(run_dir)
    log(run_dir, range(1, 4))
    sync = ["sync", str(run_dir)]
    with socket.socket() as mute:  # takes connections and says nothing
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        mute.settimeout(PATIENCE)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{mute.getsockname()[1]}")
        shipper = Shipper(run_dir, close_seconds=0.5)
        connection, _ = mute.accept()
        started = time.monotonic()
        shipper.log({}, 3, 3)
        assert time.monotonic() - started < 1
        life.close("finished")
        with pytest.raises(RuntimeError, match=rf"`neuclip sync {run_dir}` sends the rest"):
            shipper.close("finished")
        assert time.monotonic() - started < 30
        with pytest.raises(RuntimeError, match="way to MLflow ended"):
            shipper.log({}, 4, 4)
        connection.close()
    away = CliRunner().invoke(main, sync)
    assert away.exit_code == 2
    assert "not everything was sent" in away.output

    here = ["--to", f"sqlite:///{run_dir}/mlflow.db"]
    sent = CliRunner().invoke(main, [*sync, *here])
    assert (sent.exit_code, sent.stdout) == (
        0, f"{run_dir}: 2 runs, 6 points, 2 files sent to {here[1]}\n"
    )  # fmt: skip
    again = CliRunner().invoke(main, [*sync, *here])
    assert again.stdout == f"{run_dir}: nothing new sent to {here[1]}\n"
    client = client_of(run_dir)
    (train,) = client.search_runs(["1"], "tags.`neuclip.key` = 'train'")
    assert_arrived(client, train.info.run_id, run_dir / "train/metrics.jsonl")
    assert train.info.status == "FINISHED"


def test_sync_waits_for_a_shipper_that_its_command_left_behind(run_dir):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(run_dir)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.read(1) == b"x"
        result = CliRunner().invoke(main, ["sync", str(run_dir)])
    assert result.exit_code == 0, result.output


def test_sync_says_which_of_several_could_not_be_sent(run_dir, tmp_path_factory, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.live.CLOSE_SECONDS", 0.1)
    empty = tmp_path_factory.mktemp("empty")
    with only_mirror(run_dir):
        result = CliRunner().invoke(main, ["sync", str(run_dir), str(empty)])
    assert result.exit_code == 2
    assert f"the way of {run_dir} to MLflow is in use by process {os.getpid()}" in result.stderr
    assert f"{empty} is no run directory" in result.stderr
    assert "Traceback" not in result.output


def test_the_block_goes_on_whatever_the_shipper_does(run_dir, monkeypatch, caplog):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with caplog.at_level(logging.WARNING), mirrored(run_dir, TrackingConfig()):
        done = True
    assert done
    assert [record.getMessage() for record in caplog.records] == [
        f"not everything reached MLflow; `neuclip sync {run_dir}` sends the rest"
    ]
    with pytest.raises(ZeroDivisionError), mirrored(run_dir, TrackingConfig()):
        1 / 0  # noqa: B018
    monkeypatch.setattr("sys.executable", "/there/is/no/such/program")
    with mirrored(run_dir, TrackingConfig(mlflow=False)):
        pass


def test_points_only_is_points_only(run_dir):
    """What happens every second sends no tags, and asks nothing of the server."""
    life = begin_life(run_dir)
    log(run_dir, range(1, 4))
    with only_mirror(run_dir):
        mirror = Mirror(run_dir)
        mirror.advance()
        log(run_dir, range(4, 6), start_step=3)
        life.close("finished")
        assert mirror.advance_points().points == 4
        assert mirror.advance_points().points == 0
        assert status(run_dir) == "FAILED"  # as of the look at everything, when there was no end


@pytest.mark.parametrize("module", ["pipeline.tracking", "pipeline.tracking.system", "pipeline.launch.local"])
def test_what_trains_and_what_launches_does_not_import_mlflow(module):
    code = f"import sys, {module}; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_that_ends_while_another_ships_has_it_look_at_everything(run_dir):
    """The first shipper's parent goes on; the second one's has ended training, which nobody else says to the first."""
    with exclusive(run_dir / "train/.lock", "training"):
        life = begin_life(run_dir)
        log(run_dir, range(1, 4))
        first = Shipper(run_dir, close_seconds=PATIENCE)
        eventually(lambda: train_id(run_dir) is not None and status(run_dir) == "RUNNING", "the first one ships")
        life.close("finished")
        second = Shipper(run_dir, close_seconds=PATIENCE)
        second.close("finished")
        eventually(lambda: status(run_dir) == "FINISHED", "the first one looks")
        first.close("finished")
    assert not (run_dir / ".mlflow.look").exists()
