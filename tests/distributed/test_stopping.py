"""Signals: to a whole process group, a second one, and one while the loop hangs."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import HealthConfig, RunConfig
from pipeline.health import watchdog
from pipeline.preemption import StopRequest
from pipeline.tracking.jsonl import JsonlTracker
from pipeline.trainer import Trainer
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import config_of, digest, fit, here


class SignalToAll(JsonlTracker):
    """Signals the process group, data workers included, once the first step is logged, and again after the next."""

    def __init__(self, path: Path, start_step: int, first: signal.Signals, *more: signal.Signals) -> None:
        super().__init__(path, start_step)
        self._sent = {start_step + 1: [first], start_step + 2: more}

    def log(self, metrics: Any, step: int, samples_seen: int) -> None:
        super().log(metrics, step, samples_seen)
        for number in self._sent.get(step, ()):
            os.killpg(os.getpgrp(), number)
            time.sleep(0.1)  # signals that wait are one, however many were sent


LIVES = {
    "SIGUSR1": [signal.SIGUSR1],
    "SIGTERM": [signal.SIGTERM],
    "Ctrl-C": [signal.SIGINT],
    "a time limit": [signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM],
    "a preemption": [signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1],
}


def signalled_lives(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Each life ends after two steps, by a signal after the first; the last one goes on to the end."""
    os.setpgid(0, 0)
    multiprocessing.set_start_method("fork", force=True)  # of data workers; this process comes from a fork server
    found = {}
    for name, numbers in LIVES.items():
        trainer = Trainer(config, folder / "train", here())
        tracker = SignalToAll(folder / "train/metrics.jsonl", trainer.progress.step, *numbers)
        found[name] = (trainer.fit(tracker), trainer.progress.step)
    return {**found, "end": fit(config, folder)}


def test_signals_to_the_process_group_stop_the_trainer_alone_and_let_it_save(
    noise_corpus: Path, tmp_path: Path
) -> None:
    config = config_of(noise_corpus, "train.log_every_steps=1", "loader.workers=2", "train.steps=11")
    (found,) = run_ranks(1, signalled_lives, config, tmp_path / "signalled")
    assert [found[name] for name in LIVES] == [("preempted", step) for step in (2, 4, 6, 8, 10)]
    alone = config_of(noise_corpus, "train.log_every_steps=1", "train.steps=11")
    (whole,) = run_ranks(1, fit, alone, tmp_path / "whole")
    assert found["end"]["order"] == whole["order"]
    assert digest(found["end"]["weights"]) == digest(whole["weights"])


def locked_in_c(request: StopRequest) -> None:
    """No signal handler of Python runs in here, but its other threads do."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def locked_with_the_gil(request: StopRequest) -> None:
    """No other thread of Python runs either, from a moment after the signal on."""
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    while request.reason != "SIGUSR1":
        time.sleep(0.01)
    time.sleep(0.5)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def hang(folder: Path, how: Callable[[StopRequest], None], within_seconds: float, *numbers: int) -> None:
    """Watched meanwhile, as in a run, by one that waits longer and winds its own deadline up again and again."""
    os.dup2(os.open(folder / "stderr", os.O_CREAT | os.O_WRONLY), 2)
    watchdog.LONGEST_PERIOD_SECONDS = 0.05
    watched = watchdog.Watchdog(HealthConfig(hang_seconds=1000), folder, here())
    request = StopRequest(folder, here(), within_seconds)

    def send() -> None:
        for number in numbers:
            time.sleep(0.3)
            os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    with watched:
        how(request)


CASES = {  # how it hangs, within_seconds, signals, exit status, what is said
    "too long": (locked_in_c, 1, [signal.SIGTERM], 128 + signal.SIGTERM, "the stop for SIGTERM took more than 1 s"),
    "Ctrl-C afterwards": (locked_in_c, 1000, [signal.SIGTERM, signal.SIGINT], 128 + signal.SIGINT, ""),
    "Ctrl-C twice": (locked_in_c, 1000, [signal.SIGINT, signal.SIGINT], 128 + signal.SIGINT, ""),
    "with the GIL": (locked_with_the_gil, 5, [signal.SIGUSR1], 1, "Timeout"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_loop_that_hangs_is_ended(tmp_path: Path, case: str) -> None:
    how, within_seconds, numbers, status, said = CASES[case]
    with pytest.raises(RuntimeError, match=rf"exit code\): {{0: {status}}}"):
        run_ranks(1, hang, tmp_path, how, within_seconds, *numbers, timeout_seconds=60)
    stderr = (tmp_path / "stderr").read_text()
    assert said in stderr
    assert ("locked_" in stderr) == bool(said)  # where it hangs
