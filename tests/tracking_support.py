"""Run directories that look like a chain's, and real MLflow servers, for the tests of tracking."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.loader import load_recipe
from pipeline.files import read_json, write_json
from pipeline.tracking.jsonl import JsonlTracker, read_points
from pipeline.tracking.lives import LivesTracker
from pipeline.tracking.mirror import Mirror, Sent, only_mirror

PATIENCE = 300  # seconds, for processes that import mlflow on a busy machine
BATCH = 256
PRINT = "f" * 64


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited too long: {what}"
        time.sleep(0.1)


def log(run_dir: Path, steps: Iterable[int], start_step: int = 0) -> None:
    """Points of a trainer that continues at `start_step`."""
    tracker = JsonlTracker(run_dir / "train/metrics.jsonl", start_step)
    for step in steps:
        tracker.log({"train/loss": 1.0 / step, "train/tau": 0.07}, step, BATCH * step)
    tracker.close("finished")


def begin_life(run_dir: Path, step: int = 0, **told: Any) -> LivesTracker:
    """A life of training that begins at `step`; it runs while somebody holds train/.lock."""
    (run_dir / "train").mkdir(parents=True, exist_ok=True)
    corpora = [{"name": "birds", "source": "s3://corpora/birds", "fingerprint": PRINT, "samples": 7}]
    told = {"nodes": ["n1", "n2"], "world_size": 16, "corpus_fingerprint": PRINT, "corpora": corpora, **told}
    return LivesTracker(run_dir / "train", step, BATCH * step, told)


def recipe(run_dir: Path, *overrides: str) -> dict[str, Any]:
    """RUN/train/recipe.yaml, as `neuclip train` leaves it."""
    config = load_recipe("demo", overrides).model_dump(mode="json")
    (run_dir / "train").mkdir(parents=True, exist_ok=True)
    (run_dir / "train/recipe.yaml").write_text(yaml.safe_dump(config))
    return config


def plan(run_dir: Path, stages: Mapping[str, int], *overrides: str, members: Iterable[str] = ()) -> None:
    """plan.json and recipe.yaml. stages: elements of each; with members, that many of `train` and after per member."""
    config = load_recipe("demo", overrides).model_dump(mode="json")
    ingest = ("plan", "download", "verify", "manifest")
    entries = []
    for name, elements in stages.items():
        each = {} if name in ingest or not members else {"per_member": elements}
        entries.append({"name": name, "needs": [], "elements": elements * (len(list(members)) if each else 1), **each})
    known = {"recipe": "demo", "config": config, "stages": entries, "fingerprint": "1"}
    of_sweep = {"members": [{"name": name, "overrides": name.split(",")} for name in members]} if members else {}
    write_json(run_dir / "plan.json", {**known, **of_sweep})
    for home, changes in [(run_dir, ()), *((run_dir / "members" / name, name.split(",")) for name in members)]:
        home.mkdir(parents=True, exist_ok=True)
        resolved = load_recipe("demo", (*overrides, *changes)).model_dump(mode="json")
        (home / "recipe.yaml").write_text(yaml.safe_dump(resolved))


def attempt(
    run_dir: Path, stage: str, element: int, status: str | None, job: Any = None, host: str = "n1", at: float = 1000.0
) -> None:
    """One attempt at an element, begun `at` unix seconds; None: it has no end. One that is done leaves its marker."""
    stages = run_dir / "stages"
    stages.mkdir(exist_ok=True)
    event = {"attempt": 1, "time": at + element, "host": host, "pid": 1, "job": job}
    lines = [{**event, "event": "begin"}]
    if status is not None:
        end = {"event": "end", "time": at + 1000 + element, "status": status, "exit_status": 0, "reason": ""}
        lines.append({**event, **end})
    with open(stages / f"{stage}.{element}.attempts.jsonl", "a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)
    if status == "done":
        marker = {"status": "done", "started_at": at, "seconds": 1.0, "fingerprint": "", "outputs": {}}
        write_json(stages / f"{stage}.{element}.json", marker)


def exported(home: Path, weights: str = "ab" * 32, step: int = 9) -> None:
    """An exported model."""
    known = {"checkpoint": f"step-{step:08d}", "weights_sha256": weights, "samples_seen": step * BATCH}
    write_json(home / "model/export.json", known)
    (home / "model/open_clip_model.safetensors").write_bytes(weights.encode() * 100)


def results(home: Path, average: float = 0.5, weights: str = "ab" * 32) -> None:
    """An evaluation of the exported model."""
    of = {"checkpoint_sha256": weights}
    write_json(home / "results/imagenet.json", {"task": "imagenet", "score": average, "data_fingerprint": PRINT, **of})
    groups = {"natural": {"tasks": 1, "mean": average}}
    summary = {"average": average, "tasks": 1, "groups": groups, "scores": {"imagenet": {"score": average}}, **of}
    write_json(home / "results/aggregate.json", summary)


def advance(run_dir: Path) -> Sent:
    """Mirror it once; nothing is left."""
    with only_mirror(run_dir):
        sent = Mirror(run_dir).advance()
    assert sent.problems == []
    return sent


AVERAGES = {("neuclip", 0): 0.5, ("neuclip", 1): 0.7, ("openclip", 0): 0.4, ("openclip", 1): 0.4}


def mirrored_sweep(root: Path) -> dict[tuple[str, int], Path]:
    """Two objectives, two seeds, finished and sent to ROOT/mlflow.db; returns the members' folders."""
    homes = {key: root / f"members/objective={key[0]},seed={key[1]}" for key in AVERAGES}
    overrides = ("tracking.experiment=neuclip", "tracking.models=false")
    plan(root, {"train": 1, "export": 1, "evaluate": 1}, *overrides, members=[home.name for home in homes.values()])
    for number, ((objective, seed), home) in enumerate(homes.items()):
        recipe(home, f"objective={objective}", f"seed={seed}")
        life = begin_life(home)
        log(home, range(1, 5 + number))
        life.close("finished")
        exported(home, f"{number}" * 64)
        results(home, AVERAGES[objective, seed], f"{number}" * 64)
        for stage in ("train", "export", "evaluate"):
            attempt(root, stage, number, "done")
    advance(root)
    return homes


def runs_of(run_dir: Path) -> dict[str, str]:
    """Ids of its runs by key, as mlflow.json has them."""
    known = read_json(run_dir / "mlflow.json")
    return {"": known["parent_run_id"], **known["runs"]}


def status(uri: str, run_id: str) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient(uri, uri).get_run(run_id).info.status)


def assert_arrived(client: Any, run_id: str, spool: Path, passed_again: bool = False) -> None:
    """Of each metric of the spool the run has every point exactly once, and no other.

    passed_again: a killed training passed steps a second time, which are not sent twice: of those that had arrived the
    run has the earlier time.
    """
    expected: dict[str, list[tuple[int, float, int]]] = {}
    for point in read_points(spool):
        for name, value in point.metrics.items():
            expected.setdefault(name, []).append((point.samples_seen, value, int(point.time * 1000)))
    for name, points in expected.items():
        history = sorted((m.step, m.value, m.timestamp) for m in client.get_metric_history(run_id, name))
        assert [point[:2] for point in history] == [point[:2] for point in sorted(points)], name
        late = [there[2] - logged[2] for there, logged in zip(history, sorted(points), strict=True)]
        assert max(late) == 0, name
        assert passed_again or min(late) == 0, name
    assert expected, f"{spool} is empty"


class Server:
    """A real `mlflow server`, on one port over its lives."""

    def __init__(self, folder: Path, store: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        stores = ["--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]
        self._command = [*command, "--workers", "1", *stores]
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with open(self._log, "ab") as stream:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=stream, stderr=stream, start_new_session=True
            )
        eventually(self._answers, "mlflow server comes up")

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with suppress(OSError):
            return bool(urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200)
        return False


class Proxy:
    """Stands before a server and, as `faults` says of each request, does to it what networks do.

    "" passes on; "500" answers so itself; "hang" never answers; "lost" passes on and closes without the reply.
    """

    def __init__(self, server: str, faults: Callable[[], str]) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                proxy.handle(self)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        self._server, self._faults = server, faults
        self.seen: Counter[str] = Counter()
        self._over = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._over.set()
        self._http.shutdown()
        self._http.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        fault = self._faults()
        self.seen[fault] += 1
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        request.close_connection = True
        if fault == "hang":
            self._over.wait(PATIENCE)
            return
        if fault == "500":
            request.send_error(500)
            return
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        asked = urllib.request.Request(f"{self._server}{request.path}", body or None, headers, method=request.command)
        try:
            with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        if fault == "lost":
            return
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)
