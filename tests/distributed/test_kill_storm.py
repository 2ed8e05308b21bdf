"""kill -9, forty times at seeded moments, and three damaged checkpoints: the run ends as if nothing had happened.

pytest -m long tests/distributed/test_kill_storm.py
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.schema import RunConfig
from pipeline.engine.tags import complete_tags
from pipeline.training import train
from tests.distributed.launch import _CONTEXT, free_port
from tests.distributed.training_support import config_of, hurt, tensors_of

RANKS, STEPS, KILLS = 2, 300, 40
LIFE_SECONDS = 120  # without a step, a save or an end in all that time something hangs
RUN_SECONDS = 1800
DAMAGES = {10: "truncate", 20: "flip", 30: "delete"}  # of the newest checkpoint, after so many kills

Ready = Callable[[], bool]


def live(rank: int, port: str, config: RunConfig, run_dir: Path) -> None:
    """What `neuclip train` does on one rank."""
    log = os.open(run_dir.with_suffix(f".{rank}.log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    multiprocessing.set_start_method("fork", force=True)  # of data workers; this process comes from a fork server
    os.environ.update(WORLD_SIZE=str(RANKS), RANK=str(rank), LOCAL_RANK=str(rank), CUDA_VISIBLE_DEVICES="")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    sys.exit(train(config, run_dir))


def start(config: RunConfig, run_dir: Path) -> list[BaseProcess]:
    port = free_port()
    ranks = [_CONTEXT.Process(target=live, args=(rank, port, config, run_dir)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    return ranks


def end(ranks: list[BaseProcess]) -> list[int | None]:
    """Exit codes, once all have ended; kill -9 for those that have not by themselves."""
    for process in ranks:
        process.join(RUN_SECONDS)
        process.kill()
        process.join()
    return [process.exitcode for process in ranks]


def steps_logged(run_dir: Path) -> int:
    """By all lives together; 0 before the first."""
    try:
        lines = (run_dir / "train/metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, IndexError, ValueError, KeyError):
        return 0


def moment(draw: random.Random, run_dir: Path) -> tuple[str, Ready, float]:
    """When to kill: what to wait for, and how many seconds after it."""
    checkpoints, before = run_dir / "train/checkpoints", steps_logged(run_dir)
    kind = draw.choice(["start", "step", "save", "sealed"])
    steps = draw.randint(1, 9)
    ready: dict[str, Ready] = {
        "start": lambda: True,
        "step": lambda: steps_logged(run_dir) >= before + steps,
        "save": lambda: any(checkpoints.glob(".step-*.tmp")),
        "sealed": lambda: any(checkpoints.glob(".step-*.tmp/part-*.json")),
    }
    return kind, ready[kind], draw.uniform(0, 2.0 if kind == "start" else 0.05)


def kill_once(draw: random.Random, config: RunConfig, run_dir: Path) -> str:
    """One life that ends by kill -9 of a rank, and a moment later of the rest; what it was hit in."""
    kind, ready, seconds = moment(draw, run_dir)
    ranks = start(config, run_dir)
    deadline = time.monotonic() + LIFE_SECONDS
    while not ready():
        assert time.monotonic() < deadline, f"nothing happened while waiting for a {kind}"
        assert all(process.exitcode is None for process in ranks), f"ended by itself; see {run_dir}.*.log"
        time.sleep(0.001)
    time.sleep(seconds)
    victims = draw.choice([[0], [1], [0, 1]])
    for victim in victims:
        os.kill(ranks[victim].pid, signal.SIGKILL)
    time.sleep(draw.uniform(0, 0.3))  # then a launcher ends the rest
    for process in ranks:
        process.kill()
        process.join()
    return kind


def outcome(run_dir: Path) -> dict[str, Any]:
    """What must not depend on how often a run was killed."""
    summary = json.loads((run_dir / "train/summary.json").read_text())
    tag = run_dir / "train/checkpoints" / complete_tags(run_dir / "train/checkpoints")[-1]
    module = torch.load(tag / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    objective = torch.load(tag / "objective.pt", weights_only=True)
    tensors = tensors_of({**module, **objective})
    assert len(tensors) > 10
    assert any("prototypes" in name for name in tensors)
    return {"steps": summary["steps"], "order": summary["order_digest"], "tag": tag.name, "tensors": tensors}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_forty_kills_change_nothing(noise_corpus: Path, tmp_path: Path) -> None:
    config = config_of(
        noise_corpus,
        f"train.steps={STEPS}",
        "train.log_every_steps=1",
        "checkpoint={every: 36 samples, keep: 3, keep_every: 50 steps}",
        "loader.workers=1",
        "diagnostics.every_steps=100",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert end(start(config, whole)) == [0, 0]
    draw, hit = random.Random(7), []
    for kills in itertools.count(1):
        hit.append(kill_once(draw, config, killed))
        if kills in DAMAGES:
            hurt(killed / "train/checkpoints" / complete_tags(killed / "train/checkpoints")[-1], DAMAGES[kills])
        if kills == KILLS:
            break
    assert set(hit) == {"start", "step", "save", "sealed"}
    assert 10 < steps_logged(killed) < STEPS  # it got on in spite of them, and they did not come too late
    assert end(start(config, killed)) == [0, 0]
    said = (tmp_path / "killed.0.log").read_text()
    assert said.count("CHECKPOINT DAMAGED") == len(DAMAGES)
    expected, got = outcome(whole), outcome(killed)
    assert expected.pop("tensors").keys() == got["tensors"].keys()
    for name, tensor in outcome(whole)["tensors"].items():
        assert torch.equal(tensor, got["tensors"][name]), name
    got.pop("tensors")
    assert got == expected
    kept = [int(tag.removeprefix("step-")) for tag in complete_tags(killed / "train/checkpoints")]
    assert kept[-1] == STEPS
    assert {step // 50 for step in kept} == set(range(1, 7))  # one for ever of each 50 steps
