"""Evaluation during training on two ranks: scores arrive once each; whatever becomes of it, training is the same."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.schema import RunConfig
from pipeline.distributed import rank
from pipeline.engine.export import export
from pipeline.engine.tags import complete_tags
from pipeline.evaluation import during_training
from pipeline.evaluation.suite import evaluate
from pipeline.tracking.jsonl import read_points
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import config_of, digest, fit
from tests.unit.evaluation_support import write_suite

TASKS = ["colours", "captions"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaldata")
    write_suite(folder)
    return folder


def config(corpus: Path, data: Path, *overrides: str) -> RunConfig:
    during = f"evaluate_during={{every: 4 steps, data: {data}, tasks: [{','.join(TASKS)}], workers: 0}}"
    steady = ("checkpoint.every=null", "checkpoint.keep=1", "train.log_every_steps=1", "train.deepspeed=zero3")
    return config_of(corpus, *steady, during, *overrides)


def without_evaluation(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"evaluate_during": type(config.evaluate_during)()})


def scores(run_dir: Path) -> list[tuple[int, int, dict[str, float]]]:
    """Step, samples seen and metrics of each point that has scores."""
    points = read_points(run_dir / "train/metrics.jsonl")
    return [(p.step, p.samples_seen, p.metrics) for p in points if any(n.startswith("eval/") for n in p.metrics)]


def three_lives(config: RunConfig, folder: Path) -> dict[str, Any]:
    """A run that is stopped while its first evaluation is at work, goes on, and is started once more."""
    runs = {"plain": fit(without_evaluation(config), folder / "plain")}
    runs["stopped"] = fit(config, folder / "run", stop_after=6)
    if rank() == 0:
        (folder / "run/STOP").unlink()
    torch.distributed.barrier()
    return {**runs, "resumed": fit(config, folder / "run"), "again": fit(config, folder / "run")}


def test_scores_arrive_once_and_training_is_the_same(noise_corpus: Path, data: Path, tmp_path: Path) -> None:
    runs = run_ranks(2, three_lives, config(noise_corpus, data), tmp_path)[0]
    assert digest(runs["resumed"]["weights"]) == digest(runs["plain"]["weights"])
    assert runs["resumed"]["order"] == runs["plain"]["order"]
    assert (runs["stopped"]["status"], runs["again"]["started_at"]) == ("preempted", 8)
    assert [point[:2] for point in scores(tmp_path / "run")] == [(4, 48), (8, 96)]
    assert not list((tmp_path / "run/train/evaluations").glob("*/model"))
    assert complete_tags(tmp_path / "run/train/checkpoints") == ["step-00000008"]
    export(tmp_path / "run/train/checkpoints", tmp_path / "model")
    results = evaluate(tmp_path / "model", data, tmp_path / "results", TASKS, workers=0, device="cpu")
    assert scores(tmp_path / "run")[1][2] == {f"eval/{result['task']}": result["score"] for result in results}


HANGS_AT_4_AND_CRASHES_AT_8 = """
import os, sys, time
time.sleep(600) if "step-00000004" in sys.argv[2] else os.abort()
"""


def fit_with_trouble(config: RunConfig, folder: Path) -> tuple[list[str], str]:
    """Digests of the weights without evaluation, and with troubled ones; what was warned of."""
    said = io.StringIO()
    logging.getLogger("pipeline").addHandler(logging.StreamHandler(said))
    found = [digest(fit(without_evaluation(config), folder / "plain")["weights"])]
    commands = (sys.executable, "-c", HANGS_AT_4_AND_CRASHES_AT_8), (str(folder / "nothing"),)
    for number, during_training.COMMAND in enumerate(commands):
        found.append(digest(fit(config, folder / str(number))["weights"]))
    return found, said.getvalue()


def test_an_evaluation_that_fails_does_not_touch_training(noise_corpus: Path, data: Path, tmp_path: Path) -> None:
    limits = ("evaluate_during.limit_minutes=0.01", "evaluate_during.wait_minutes=1")
    at_once = "checkpoint.background=false"  # else step 8 may come before step 4 is written, which is then left out
    found, said = run_ranks(2, fit_with_trouble, config(noise_corpus, data, *limits, at_once), tmp_path)[0]
    assert len(set(found)) == 1
    hung, crashed, off = said.splitlines()
    assert "step 4 was killed after evaluate_during.limit_minutes=0.01; training goes on without scores of" in hung
    assert "step 8 ended with -6; training goes on without scores of colours, captions" in crashed
    assert off.startswith("nothing more is evaluated during training: FileNotFoundError")
