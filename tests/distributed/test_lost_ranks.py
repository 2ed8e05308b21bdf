"""On two real ranks: one that hangs, is killed, or loses a loader worker ends the run with words, on both."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import RunConfig
from pipeline.errors import UserError
from pipeline.health.heartbeat import read_heartbeats
from pipeline.stopping import EXIT_LOST
from pipeline.trainer import Trainer
from pipeline.training import train
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import config_of, here

HANG_SECONDS = 20  # the start on a slow machine must take less
ILL_STEP = 3


class Trouble:
    """A callback: `kind` befalls rank 1 at step 3."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def before_step(self, trainer: Any) -> None:
        pass

    def after_step(self, trainer: Any, batch: Any, output: Any) -> None:
        if trainer.world.rank != 1 or trainer.progress.step != ILL_STEP:
            return
        if self.kind == "sleeps":
            sleep_for_ever()
        if self.kind == "worker killed":
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)
            return
        os.kill(os.getpid(), {"stopped": signal.SIGSTOP, "killed": signal.SIGKILL}[self.kind])


def sleep_for_ever() -> None:
    time.sleep(10_000)


def life(config: RunConfig, run_dir: Path, kind: str) -> None:
    """As `neuclip train`, with what it writes to the terminal in RUN/<rank>.log."""
    rank = here().rank
    log = os.open(run_dir / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.WARNING)
    multiprocessing.set_start_method("fork", force=True)  # for loader workers, as in a process that nobody forked
    usual = Trainer._callbacks
    Trainer._callbacks = lambda trainer: [*usual(trainer), Trouble(kind)]  # type: ignore[method-assign]
    try:
        status = train(config, run_dir)
    except UserError as error:
        os.write(2, f"error: {error}\n".encode())
        status = error.exit_status
    os._exit(status)


def run(corpus: Path, folder: Path, kind: str, *overrides: str) -> tuple[str, list[str]]:
    """(what the launcher said, the terminal of each rank)."""
    folder.mkdir()
    settings = ("checkpoint.every=2 steps", "loader.workers=1", f"health.hang_seconds={HANG_SECONDS}")
    config = config_of(corpus, *settings, *overrides)
    with pytest.raises(RuntimeError) as caught:
        run_ranks(2, life, config, folder, kind, timeout_seconds=90, last_words_seconds=30)
    return str(caught.value), [(folder / f"{rank}.log").read_text() for rank in (0, 1)]


@pytest.fixture(scope="module")
def runs(noise_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By trouble; they wait most of the time, so together."""
    folder = tmp_path_factory.mktemp("watchdog")
    troubles = ("stopped", "sleeps", "killed", "worker killed")
    with ThreadPoolExecutor(2) as pool:
        futures = {kind: pool.submit(run, noise_corpus, folder / kind, kind) for kind in troubles}
        return {"folder": folder, **{kind: future.result() for kind, future in futures.items()}}


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


def test_a_rank_that_is_stopped_is_named_by_the_one_that_waits(runs: dict[str, Any]) -> None:
    ended, terminals = runs["stopped"]
    folder = runs["folder"] / "stopped/train"
    stopped = read_heartbeats(folder / "heartbeats", [1])[1]
    assert f"0: {EXIT_LOST}" in ended
    (error,) = errors(terminals[0])
    assert f"nothing has moved for {HANG_SECONDS} s (health.hang_seconds) after step {ILL_STEP}" in error
    assert f"no sign of life from rank 1 (host {stopped.host}, pid {stopped.pid}) after step {stopped.step}" in error
    stacks = (folder / "stacks/00000.txt").read_text()
    assert "asking whether to stop" in stacks.splitlines()[0]
    assert "in agreed" in stacks
    assert (folder / "stacks/00001.txt").read_text() == ""


def test_a_rank_that_sleeps_is_named_and_shows_where(runs: dict[str, Any]) -> None:
    ended, terminals = runs["sleeps"]
    folder = runs["folder"] / "sleeps/train"
    assert f"{EXIT_LOST}" in ended
    said = [error for text in terminals for error in errors(text) if "health.hang_seconds" in error]
    assert said
    for error in said:
        assert "the others wait for rank 1 (host" in error
        assert f"after step {ILL_STEP}, in Trouble" in error
    assert "in sleep_for_ever" in (folder / "stacks/00001.txt").read_text()
    assert "in sleep_for_ever" not in (folder / "stacks/00000.txt").read_text()


def test_a_rank_that_is_killed_is_named_in_place_of_a_traceback(runs: dict[str, Any]) -> None:
    ended, terminals = runs["killed"]
    assert "1: -9" in ended
    assert f"0: {EXIT_LOST}" in ended
    (error,) = errors(terminals[0])
    assert f"lost the other ranks after step {ILL_STEP}: no sign of life from rank 1 (host" in error
    assert "Traceback" not in terminals[0]


def test_a_loader_worker_that_is_killed_ends_both_ranks_with_the_reason(runs: dict[str, Any]) -> None:
    ended, terminals = runs["worker killed"]
    assert "{0: 2, 1: 2}" in ended
    (error,) = errors(terminals[1])
    assert re.search(r"a loader worker \(pid \d+\) (was killed \(Killed\)|ended unexpectedly)", error)
    assert "lower loader.workers" in error
    (error,) = errors(terminals[0])
    assert "lost the other ranks" in error
    assert "rank 1 (host" in error
    assert "a loader worker (pid " in error
    assert "Traceback" not in terminals[0] + terminals[1]
