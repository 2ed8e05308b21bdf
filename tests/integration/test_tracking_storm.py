"""MLflow under fire: a server killed twenty times, fifty runs at once on PostgreSQL, a training between two servers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline.files import read_json
from pipeline.tracking.jsonl import read_points
from pipeline.tracking.mirror import Mirror, Sent, only_mirror
from tests.distributed.launch import free_port
from tests.distributed.training_support import TINY
from tests.tracking_support import PATIENCE, Server, assert_arrived, begin_life, eventually, log, recipe

pytestmark = [pytest.mark.long, pytest.mark.timeout(3000)]

KILLS = 20
RUNS = 50

# Logs like the trainer, from its "checkpoint" on, until it is told to end; what it holds and leaves is the trainer's.
TRAINER = """
import sys, time
from pathlib import Path
from pipeline.config.schema import TrackingConfig
from pipeline.locks import exclusive
from pipeline.tracking.training import training_tracker
run, step = Path(sys.argv[1]), int(sys.argv[2])
train = run / "train"
with exclusive(train / ".lock", "training"):
    tracker = training_tracker(TrackingConfig(), run, train / "metrics.jsonl", (step, 256 * step), 10**6, {})
    while not (run / "END").exists():
        step += 1
        tracker.log({"train/loss": 1 / step, "train/tau": 0.07, "npn/share": step % 7}, step, 256 * step)
        time.sleep(0.05)
    tracker.close("finished")
"""


def trainer(run_dir: Path, step: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", TRAINER, str(run_dir), str(step)], stdout=subprocess.DEVNULL)


def last_step(run_dir: Path) -> int:
    return max((point.step for point in read_points(run_dir / "train/metrics.jsonl")), default=0)


def sync(run_dir: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", "sync", str(run_dir)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_server_killed_twenty_times_has_every_point_once(tmp_path, monkeypatch):
    """It dies and comes back at random; now and then the trainer is killed as well, and goes on a little before."""
    rng = random.Random(0)
    server = Server(tmp_path / "server", f"sqlite:///{tmp_path}/behind.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    run_dir = tmp_path / "run"
    recipe(run_dir)
    process = trainer(run_dir, 0)  # the server is down at the start
    try:
        for kill in range(KILLS):
            server.start()
            time.sleep(rng.uniform(0.2, 3))
            if kill % 7 == 3:
                process.kill()
                process.wait()
                process = trainer(run_dir, max(0, last_step(run_dir) - rng.randint(0, 40)))
            server.kill()
            before = last_step(run_dir)
            eventually(lambda: last_step(run_dir) > before, "the trainer goes on")  # noqa: B023
            time.sleep(rng.uniform(0, 1))
        server.start()
        (run_dir / "END").touch()
        process.wait(timeout=PATIENCE)
        sync(run_dir)
        known = read_json(run_dir / "mlflow.json")
        client = MlflowClient(server.uri, server.uri)
        assert_arrived(client, known["runs"]["train"], run_dir / "train/metrics.jsonl", passed_again=True)
        found = client.search_runs([client.get_run(known["parent_run_id"]).info.experiment_id])
        assert {run.info.run_id for run in found} == {known["parent_run_id"], known["runs"]["train"]}
        assert {run.info.status for run in found} == {"FINISHED"}
    finally:
        process.kill()
        server.kill()


def test_a_training_whose_server_dies_and_which_is_killed_itself_ends_whole(noise_corpus, tmp_path, monkeypatch):
    server = Server(tmp_path / "server", f"sqlite:///{tmp_path}/behind.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    run_dir = tmp_path / "run"
    train = "{steps: 300, epochs: null, global_batch_size: 4, processes: 1, log_every_steps: 1}"
    overrides = [
        f"loader.manifest={noise_corpus}", f"model.config={TINY}", f"train={train}", "checkpoint.every=20 steps",
        "diagnostics={every_steps: 10, reference_samples: 8}", "tracking.system_every_seconds=0.2",
    ]  # fmt: skip
    command = [sys.executable, "-m", "pipeline", "train", "demo", "--run-dir", str(run_dir), *overrides]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}

    def start() -> subprocess.Popen[bytes]:
        with open(tmp_path / "log", "ab") as stream:
            return subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)

    process = start()
    try:
        eventually(lambda: last_step(run_dir) > 5, "training begins without a server")
        server.start()
        eventually(lambda: last_step(run_dir) > 60, "training goes on")
        server.kill()
        eventually(lambda: last_step(run_dir) > 90, "training does not wait for the server")
        process.kill()
        process.wait()
        process = start()
        eventually(lambda: len((run_dir / "train/lives.jsonl").read_text().splitlines()) == 2, "it continues")
        server.start()
        assert process.wait(timeout=PATIENCE) == 0, (tmp_path / "log").read_text()
        sync(run_dir)
        client, known = MlflowClient(server.uri, server.uri), read_json(run_dir / "mlflow.json")
        assert_arrived(client, known["runs"]["train"], run_dir / "train/metrics.jsonl", passed_again=True)
        assert_arrived(client, known["runs"]["train"], run_dir / "train/system/node_0.jsonl")
        assert [point.step for point in read_points(run_dir / "train/metrics.jsonl")] == [*range(1, 301)]
        assert client.get_run(known["runs"]["train"]).info.status == "FINISHED"
        assert client.get_run(known["runs"]["train"]).data.tags["lives"] == "2"
    finally:
        process.kill()
        server.kill()


@pytest.fixture
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server of Debian's, which runs as another user than root."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not binaries:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    user: dict[str, Any] = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    folder, port = Path(tempfile.mkdtemp(prefix="postgres-")), free_port()
    if user:
        shutil.chown(folder, **user)

    def run(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(binaries[-1].parent / name), *arguments]
        with open(os.devnull, "wb") as nowhere:
            return subprocess.Popen(command, cwd=folder, stdout=nowhere, stderr=nowhere, **user)

    assert run("initdb", "-D", "data", "-U", "tracking", "-A", "trust", "-E", "UTF8", "--no-sync").wait() == 0
    server = run("postgres", "-D", "data", "-p", port, "-k", str(folder), "-c", "max_connections=200", "-F")
    try:
        ready = ("-h", "127.0.0.1", "-p", port, "-U", "tracking")
        eventually(lambda: run("pg_isready", *ready).wait() == 0, "PostgreSQL comes up")
        assert run("createdb", *ready, "mlflow").wait() == 0
        yield f"postgresql+psycopg2://tracking@127.0.0.1:{port}/mlflow"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=PATIENCE)
        shutil.rmtree(folder)


def test_fifty_runs_write_at_once_to_postgresql(tmp_path, postgres, monkeypatch):
    """Each with a mirror of its own; all meet the experiment while it is not there yet."""
    server = Server(tmp_path / "server", postgres)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(PATIENCE))  # one server for fifty, on whatever machine
    together = threading.Barrier(RUNS)

    def run(number: int) -> Path:
        run_dir = tmp_path / f"run-{number}"
        recipe(run_dir, f"seed={number}", "tracking.experiment=fifty")
        life = begin_life(run_dir)
        with only_mirror(run_dir):
            mirror = Mirror(run_dir)
            together.wait()
            for begin in range(0, 200, 50):
                log(run_dir, range(begin + 1, begin + 51), start_step=begin)
                persist(mirror)
            life.close("finished")
            persist(mirror)
        return run_dir

    def persist(mirror: Mirror) -> Sent:
        deadline = time.monotonic() + 10 * PATIENCE
        while True:
            try:
                sent = mirror.advance()
                if not sent.problems:
                    return sent
            except Exception:
                if time.monotonic() > deadline:
                    raise
            time.sleep(1)

    try:
        server.start()
        with ThreadPoolExecutor(RUNS) as pool:
            run_dirs = list(pool.map(run, range(RUNS)))
        client = MlflowClient(server.uri, server.uri)
        experiment = client.get_experiment_by_name("fifty")
        found = client.search_runs([experiment.experiment_id], max_results=1000)
        assert len(found) == 2 * RUNS
        assert {r.info.status for r in found} == {"FINISHED"}
        assert sorted(int(r.data.params["seed"]) for r in found) == sorted([*range(RUNS)] * 2)
        for run_dir in run_dirs:
            train = json.loads((run_dir / "mlflow.json").read_text())["runs"]["train"]
            assert_arrived(client, train, run_dir / "train/metrics.jsonl")
    finally:
        server.kill()
