"""Training through `neuclip work`: asked to stop in any of its ways it is stopped, not failed, and goes on."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.launch.attempts import read_attempts
from pipeline.launch.paths import Member, RunPaths
from pipeline.launch.plan import freeze
from pipeline.launch.run import Run
from pipeline.launch.work import work
from tests.distributed.training_support import config_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def training(root: Path, corpus: Path, members: tuple[Member, ...] = ()) -> Run:
    """A run of 400 steps on two ranks, of which nothing but training is left."""
    settings = ["train.steps=400", "train.log_every_steps=1", "train.processes=2", "tracking.mlflow=false"]
    config = config_of(corpus, *settings)
    loader = config.loader.model_copy(update={"manifest": None})
    paths = freeze(RunPaths(root, config.model_copy(update={"loader": loader}), members))
    paths.corpora.mkdir()
    paths.corpus.symlink_to(corpus)
    run = Run.planned(paths)
    return Run(paths, (replace(run.stage("train"), needs=()),))


def after_some_steps(run: Run, act: Callable[[], None]) -> threading.Thread:
    metrics = run.stages[0].paths_of(run.paths, 0).train / "metrics.jsonl"

    def watch() -> None:
        deadline = time.monotonic() + 300
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2) and time.monotonic() < deadline:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize("how", ["SIGUSR1", "STOP of a sweep"])
def test_it_is_stopped(noise_corpus: Path, tmp_path: Path, how: str) -> None:
    sweep = (Member("seed=3", ("seed=3",)),) if how == "STOP of a sweep" else ()
    run = training(tmp_path / "run", noise_corpus, sweep)

    def act() -> None:
        if how == "SIGUSR1":
            os.kill(os.getpid(), signal.SIGUSR1)
        else:
            (run.paths.root / "STOP").touch()

    thread = after_some_steps(run, act)
    assert work(run, run.stages[0], 0, "local", None) == 75, run.paths.log("train", 0).read_text()
    thread.join()
    attempt = read_attempts(run.paths.attempts("train", 0))[-1]
    assert attempt.status == "stopped"
    assert "on request, after step" in attempt.reason
    folder = run.stages[0].paths_of(run.paths, 0).train
    tag = (folder / "checkpoints/latest").read_text().strip()
    saved = json.loads((folder / "checkpoints" / tag / "trainer.json").read_text())["step"]
    logged = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert 2 <= saved == logged[-1] < 400
