"""A sweep of two objectives, from images to a comparison."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL = (
    "corpus.scenes=96", "corpus.evaluation_scenes=64", "corpus.tasks=2", "train.epochs=null", "train.steps=2",
    "train.global_batch_size=16", "train.processes=1", "diagnostics.reference_samples=16", "loader.workers=0",
    "objectives.neuclip.npn.prototypes=16", "evaluate.tasks=[scenes-unseen]", "evaluate.workers=0",
    "tracking.mlflow=false",
)  # fmt: skip
NAMES = [f"objective={objective},seed=1" for objective in ("neuclip", "fastclip")]


def neuclip(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_sweep_from_images_to_a_comparison(tmp_path: Path) -> None:
    run = tmp_path / "sweep"
    sweep = ["--sweep", "objective=neuclip,fastclip", "--sweep", "seed=1"]
    chain = ["run", "demo", "--workdir", run, "--jobs", "2", *sweep, *SMALL]
    ended = neuclip(*chain, "--only", "fabricate")
    assert ended.returncode == 0, ended.stderr
    assert "neuclip retry" in ended.stdout
    assert read_status(run)["train"]["waiting"] == 2
    ended = neuclip("retry", run, "--jobs", "2")
    assert ended.returncode == 0, ended.stderr
    assert all(stage["done"] == stage["total"] for stage in read_status(run).values())
    assert f"report:  {run / 'compare.html'}" in ended.stdout
    assert all(name in (run / "compare.html").read_text() for name in NAMES)
    pictures = {"curve-train-loss.png", "scores.png"}
    for folder in (run, *(run / "members" / name for name in NAMES)):
        assert pictures <= {path.name for path in (folder / "figures").iterdir()}
    assert (run / "figures/differences.png").exists()

    summary = read(run / "summary.json")
    assert list(summary["members"]) == NAMES
    losses = [entry["train"]["final_loss"] for entry in summary["members"].values()]
    assert len(set(losses)) == 2, "each trained with settings of its own"
    for name, entry in summary["members"].items():
        assert entry["evaluate"]["scenes-unseen"]["score"] is not None
        assert (run / "members" / name / "report.html").exists()
        objective, seed = (setting.split("=")[1] for setting in entry["settings"])
        trained = (run / "members" / name / "train/recipe.yaml").read_text()
        assert f"objective: {objective}\n" in trained
        assert f"seed: {seed}\n" in trained
    assert len(list(run.glob("corpora/*/manifest.json"))) == 1


def read_status(run: Path) -> Any:
    told = neuclip("status", run, "--json")
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)["stages"]
