"""The whole chain on real parts, killed in the middle of every stage, ends where an undisturbed one does.

One undisturbed `neuclip demo --quick`, evaluated by two workers, is shared by all tests here; a second run is shot with
kill -9, the whole process group at once, in the middle of each of its stages in turn.
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
from pipeline.launch.ports import free_port
from tests.tracking_support import assert_arrived

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

STAGES = ["fabricate", "plan", "download", "verify", "manifest", "train", "export", "evaluate", "aggregate", "report"]
# What shows that the stage is in the middle of its work: a line of its log, or a file.
IN_THE_MIDDLE = {
    "fabricate": "corpora/demo/source/images",
    "download": "corpora/demo/download/00001",
    "verify": "stages/verify.0.json",
    "train": "train/checkpoints/step-00000020/COMPLETE",
    "evaluate": "results/.locks",
}


def command(workdir: Path, port: int) -> list[str]:
    return [
        sys.executable, "-m", "pipeline", "demo", "--quick", "--workdir", str(workdir),
        "--jobs", "2", f"corpus.port={port}", "corpus.scenes=320", "train.epochs=8", "evaluate.elements=2",
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
    assert (undisturbed / "model/README.md").read_text().count("## Scores") == 1
    page = Path(summary["report"]).read_text()
    assert "<html" in page
    assert 'src="http' not in page


def test_mlflow_has_the_run_as_docs_tracking_says(undisturbed: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{undisturbed}/mlflow.db"
    client, known = MlflowClient(uri, uri), json.loads((undisturbed / "mlflow.json").read_text())
    assert set(known["runs"]) == {"ingest", "train", "evaluate"}
    ids = {"": known["parent_run_id"], **known["runs"]}
    runs = {key: client.get_run(run_id) for key, run_id in ids.items()}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs.values()} == {None, ids[""]}
    assert_arrived(client, ids["train"], undisturbed / "train/metrics.jsonl")
    families = {name.split("/")[0] for name in runs["train"].data.metrics}
    assert {"train", "npn", "data", "system", "checkpoint"} <= families
    manifest = json.loads((undisturbed / "corpora/demo/manifest.json").read_text())
    assert runs["ingest"].data.metrics["data/ok"] == manifest["ok"]
    scores = json.loads((undisturbed / "results/aggregate.json").read_text())["scores"]
    assert {f"eval/{task}" for task in scores} <= set(runs[""].data.metrics) & set(runs["evaluate"].data.metrics)
    digests = {key: {entry.dataset.digest for entry in run.inputs.dataset_inputs} for key, run in runs.items()}
    assert digests["train"] == digests["ingest"] == {manifest["fingerprint"][:36]}
    assert len(digests["evaluate"]) == len(scores)
    assert {entry.path for entry in client.list_artifacts(ids[""])} >= {"report.html", "recipe.yaml", "plan.json"}
    pictures = {path.name for path in (undisturbed / "figures").iterdir()}
    assert {entry.path for entry in client.list_artifacts(ids[""], "figures")} == {
        f"figures/{name}" for name in pictures
    }
    assert {"curve-train-loss.png", "curve-npn-log_normalizer_mse.png", "scores.png"} <= pictures
    (model,) = client.search_logged_models([runs[""].info.experiment_id])
    weights = Path(model.artifact_location.removeprefix("file://")) / "open_clip_model.safetensors"
    assert sha256_file(weights) == sha256_file(undisturbed / "model/open_clip_model.safetensors")


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


def test_only_what_depends_on_a_lost_file_is_made_again(undisturbed: Path, port: int, tmp_path: Path) -> None:
    workdir = tmp_path / "copy"
    shutil.copytree(undisturbed, workdir)
    (workdir / "model/open_clip_model.safetensors").unlink()
    markers = {p.name: p.stat().st_mtime_ns for p in (workdir / "stages").glob("*.json")}
    finish(workdir, port)
    changed = {p.name for p in (workdir / "stages").glob("*.json") if p.stat().st_mtime_ns != markers[p.name]}
    assert changed == {"export.0.json"}  # the same weights come out, so nothing after it is stale
    assert state(workdir) == state(undisturbed)


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
