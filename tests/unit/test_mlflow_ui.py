"""`neuclip ui`: which store it opens, what it refuses, and a real MLflow that answers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from click.testing import CliRunner
from sqlalchemy import make_url

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.launch.ports import free_port
from pipeline.report.mlflow_ui import refuse_taken, tracking_store
from pipeline.tracking.directory import database_of, uri_of
from pipeline.tracking.mlflow import MlflowServer


def test_the_store_is_what_mlflow_json_says_or_the_database_that_is_there(tmp_path):
    write_json(tmp_path / "mlflow.json", {"tracking_uri": "http://tracking:5000"})
    assert tracking_store(tmp_path) == "http://tracking:5000"
    write_json(tmp_path / "mlflow.json", {"tracking_uri": "sqlite:////gone/mlflow.db"})
    with pytest.raises(UserError, match=r"/gone/mlflow\.db, which its mlflow\.json names, is gone"):
        tracking_store(tmp_path)
    (tmp_path / "mlflow.db").touch()
    assert tracking_store(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db", "the run was moved, with its database"


@pytest.mark.parametrize("name", ["q?x=1&y", "50%", "p%20c", "a b#c", "új 🐦"])
def test_a_database_is_in_its_run_whatever_that_is_called(tmp_path, name):
    run = tmp_path / name
    run.mkdir()
    (run / "mlflow.db").touch()
    uri = uri_of(run / "mlflow.db")
    assert make_url(uri).database == str(run / "mlflow.db")
    assert database_of(uri) == run / "mlflow.db"
    assert tracking_store(run) == uri
    write_json(run / "mlflow.json", {"tracking_uri": "sqlite:///mlflow.db"})
    assert tracking_store(run) == uri


def test_no_database_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"it has no mlflow\.db"):
        tracking_store(tmp_path)
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "mlflow.db").touch()
    with pytest.raises(UserError, match=f"give one of {tmp_path}/birds"):
        tracking_store(tmp_path)


def test_a_port_that_is_taken_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        result = CliRunner().invoke(main, ["ui", str(tmp_path), "--port", str(port)])
        assert result.exit_code == 2
        assert result.output.startswith(f"error: port {port} of 127.0.0.1 cannot be had")
    refuse_taken(port)


def test_a_server_is_named_not_started(tmp_path):
    write_json(tmp_path / "mlflow.json", {"tracking_uri": "https://tracking.example"})
    result = CliRunner().invoke(main, ["ui", str(tmp_path)])
    assert (result.exit_code, result.output) == (0, "This run is tracked by a server: open https://tracking.example\n")


@pytest.mark.slow
def test_mlflow_answers_at_the_address_with_the_runs(tmp_path):
    MlflowServer(f"sqlite:///{tmp_path}/mlflow.db", "demo").create("directory", "", "birds", None, None)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "ui", str(tmp_path), "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert f"open http://127.0.0.1:{port}" in process.stdout.readline()
        address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=10"
        found = json.loads(patiently(address))
        assert "demo" in [experiment["name"] for experiment in found["experiments"]]
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        process.wait(timeout=60)


def patiently(address):
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return answer.read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
