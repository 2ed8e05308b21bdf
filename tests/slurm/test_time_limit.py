"""Training in slices of a minute, which other tests have begun: in the end the same samples and weights."""

from __future__ import annotations

import json
import re
from concurrent.futures import Future

import pytest

from pipeline.launch.attempts import read_attempts
from tests.slurm.chain import Chain

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]


def test_a_time_limit_cuts_training_into_slices(finished: Chain, in_slices: tuple[Chain, Future[None]]) -> None:
    chain, ended = in_slices
    ended.result()
    attempts = read_attempts(chain.paths.attempts("train", 0))
    assert attempts[-1].status == "done", chain.say()
    assert {attempt.status for attempt in attempts[:-1]} <= {"stopped", None}  # None: killed before it could say so
    assert any(attempt.status is None or "SIGTERM" in attempt.reason for attempt in attempts[:-1])
    [said] = (chain.workdir / "slurm/logs").glob("train.*.out")
    assert "DUE TO TIME LIMIT" in said.read_text()
    assert [int(attempt.job["restarts"]) for attempt in attempts[1:] if attempt.job] == list(range(1, len(attempts)))
    assert {attempt.job["id"] for attempt in attempts if attempt.job} == {chain.job_of("train")}
    log = (chain.workdir / "logs/train.0.log").read_text()
    stops = {int(step) for step in re.findall(r"^stopped: on request, after step (\d+) of", log, re.MULTILINE)} - {0}
    goes_on = {int(step) for step in re.findall(r"continuing at step (\d+)$", log, re.MULTILINE)}
    assert len(stops) >= 3
    assert stops <= goes_on
    steps = [json.loads(line)["step"] for line in (chain.workdir / "train/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))  # each once
    assert chain.outcome() == finished.outcome()
