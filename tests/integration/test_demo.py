"""The whole chain on real parts, killed in the middle of every stage, ends where an undisturbed one does.

One undisturbed `neuclip demo --quick` is shared by all tests here; a second run is shot with kill -9, the whole
process group at once, in the middle of each of its stages in turn.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.files import sha256_file
from pipeline.launch.plan import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STAGES = ["fabricate", "plan", "download", "verify", "manifest", "train", "export", "evaluate", "report"]
# What shows that the stage is in the middle of its work: a line of its log, or a file.
IN_THE_MIDDLE = {
    "fabricate": "corpora/demo/source/images",
    "download": "corpora/demo/download/00001",
    "verify": "stages/verify.0.json",
    "train": "train/checkpoints/step-00000020/COMPLETE",
    "evaluate": "results/scenes-unseen.json",
}


def command(workdir: Path, port: int) -> list[str]:
    return [
        sys.executable, "-m", "pipeline", "demo", "--quick", "--workdir", str(workdir),
        "--jobs", "2", f"corpus.port={port}", "corpus.scenes=320", "train.epochs=8",
    ]  # fmt: skip


def finish(workdir: Path, port: int) -> str:
    result = subprocess.run(command(workdir, port), capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, port: int) -> Path:
    workdir = tmp_path_factory.mktemp("demo") / "undisturbed"
    finish(workdir, port)
    return workdir


def state(workdir: Path) -> dict[str, Any]:
    """What must not depend on what was killed."""
    manifest = json.loads((workdir / "corpora/demo/manifest.json").read_text())
    summary = json.loads((workdir / "train/summary.json").read_text())
    return {
        "manifest": manifest["fingerprint"],
        "outcomes": manifest["outcomes"],
        "shards": sorted(pq.read_table(workdir / "corpora/demo/manifest.parquet")["sha256"].to_pylist()),
        "order": summary["order_digest"],
        "weights": sha256_file(workdir / "model/open_clip_model.safetensors"),
        "scores": json.loads((workdir / "results/aggregate.json").read_text())["scores"],
    }


def test_summary_and_report_hold_what_they_promise(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert list(summary["stages"]) == STAGES
    assert all(entry["status"] == "done" and entry["seconds"] > 0 for entry in summary["stages"].values())
    ingest = summary["ingest"]
    assert ingest["rows"] == ingest["ok"] + sum(ingest["failed_by_cause"].values())
    assert {"http_404", "http_410", "http_500", "truncated", "not_an_image", "opt_out"} <= set(
        ingest["failed_by_cause"]
    )
    for name in ("steps", "final_loss", "tau", "log_normalizer_mse", "samples_per_second", "npn_share"):
        assert summary["train"][name] is not None, name
    assert set(summary["evaluate"]) == {"scenes-unseen", "scenes-retrieval", "scenes-groups"}
    assert all({"score", "chance"} <= set(entry) for entry in summary["evaluate"].values())
    page = Path(summary["report"]).read_text()
    assert "<html" in page
    assert 'src="http' not in page


def test_mlflow_has_a_parent_and_a_child_per_stage(undisturbed: Path) -> None:
    from mlflow.tracking import MlflowClient

    known = json.loads((undisturbed / "mlflow.json").read_text())
    client = MlflowClient(known["tracking_uri"])
    assert set(known["runs"]) == set(STAGES)
    assert client.get_run(known["parent_run_id"]).info.status == "FINISHED"
    for run_id in known["runs"].values():
        run = client.get_run(run_id)
        assert run.data.tags["mlflow.parentRunId"] == known["parent_run_id"]
        assert run.info.status == "FINISHED"
    losses = client.get_metric_history(known["runs"]["train"], "train/loss")
    logged = [json.loads(line) for line in (undisturbed / "train/metrics.jsonl").read_text().splitlines()]
    assert [point.step for point in losses] == [line["samples_seen"] for line in logged]


def test_a_second_run_does_nothing(undisturbed: Path, port: int) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.name != ".lock"}
    said = finish(undisturbed, port)
    assert "Nothing to do" in said
    assert "report.html" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_recipe_in_the_same_directory_is_refused(undisturbed: Path, port: int) -> None:
    result = subprocess.run([*command(undisturbed, port), "seed=7"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "seed: 0 -> 7" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.long
def test_only_what_depends_on_a_lost_file_is_made_again(undisturbed: Path, port: int, tmp_path: Path) -> None:
    workdir = tmp_path / "copy"
    shutil.copytree(undisturbed, workdir)
    (workdir / "model/open_clip_model.safetensors").unlink()
    markers = {p.name: p.stat().st_mtime_ns for p in (workdir / "stages").glob("*.json")}
    finish(workdir, port)
    changed = {p.name for p in (workdir / "stages").glob("*.json") if p.stat().st_mtime_ns != markers[p.name]}
    assert changed == {"export.0.json"}  # the same weights come out, so nothing after it is stale
    assert state(workdir) == state(undisturbed)


@pytest.mark.long
def test_killed_in_every_stage_it_ends_the_same(undisturbed: Path, port: int, tmp_path: Path) -> None:
    workdir = tmp_path / "killed"
    for stage in STAGES:
        kill_in(stage, workdir, port)
        done = {path.name.split(".")[0] for path in (workdir / "stages").glob("*.json")}
        assert stage not in done or stage in ("verify", "download"), f"{stage} was over before the kill"
    finish(workdir, port)
    assert state(workdir) == state(undisturbed)


def kill_in(stage: str, workdir: Path, port: int) -> None:
    """Run the demo until `stage` is in the middle of its work; then kill -9 the whole process group."""
    process = subprocess.Popen(
        command(workdir, port), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    sign = workdir / IN_THE_MIDDLE.get(stage, f"logs/{stage}.0.log")
    deadline = time.monotonic() + 600
    while not sign.exists():
        assert process.poll() is None, f"the demo ended before it was in {stage}"
        assert time.monotonic() < deadline, f"the demo did not reach {stage}"
        time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert_nobody_is_left(workdir)


def assert_nobody_is_left(workdir: Path) -> None:
    """Workers in sessions of their own are no part of the group that was killed; they have to notice themselves."""
    deadline = time.monotonic() + 30
    while left := processes_on(workdir):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.1)


def processes_on(workdir: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(workdir) in line and "tracking.shipper" not in line:  # it outlives its trainer, to send the rest
            found.append(line)
    return found
