"""A tiny demo as a chain of SLURM jobs: submit it, disturb it, wait for its end, compare."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.config.loader import load_recipe
from pipeline.files import read_json, sha256_file
from pipeline.launch.attempts import read_attempts
from pipeline.launch.markers import mark_done
from pipeline.launch.paths import RunPaths
from pipeline.launch.plan import freeze, open_plan
from pipeline.launch.run import Run
from pipeline.launch.settle import settle
from pipeline.launch.sweep import sweep_members

TINY = (
    "corpus.scenes=160", "corpus.evaluation_scenes=64", "corpus.samples_per_shard=50", "train.epochs=12",
    "train.global_batch_size=32", "train.log_every_steps=2", "optimizer.warmup=5", "checkpoint.every=5",
    "diagnostics.every_steps=20", "diagnostics.reference_samples=64",
)  # fmt: skip
SITE = "train: {nodes: 2, tasks_per_node: 1}\n"
POLL_SECONDS = 0.3


@dataclass(frozen=True)
class Chain:
    """One run on SLURM. settings: of the recipe `demo`, on top of TINY. site: cluster.yaml."""

    workdir: Path
    settings: tuple[str, ...]
    site: Path
    sweep: tuple[str, ...] = ()

    @property
    def paths(self) -> RunPaths:
        return open_plan(self.workdir)

    def submit(self, *options: str, settings: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        given = [*options, "--cluster", str(self.site), *TINY, *self.settings, *settings]
        given += [f"--sweep={axis}" for axis in self.sweep]
        return neuclip("submit", "demo", "--workdir", str(self.workdir), *given)

    def command(self, name: str, *options: str) -> str:
        """Of `neuclip status` and the like; what it says."""
        result = neuclip(name, str(self.workdir), *options)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def jobs(self) -> dict[str, str]:
        """{job or element of an array: state} of what SLURM has of this run."""
        known = {line["job"] for line in self.ledger() if line["event"] == "submitted"}
        listed = slurm("squeue", "--noheader", "--array", "--format=%F %i %T").splitlines()
        return {name: state for job, name, state in map(str.split, listed) if job in known}

    def ledger(self) -> list[dict[str, Any]]:
        file = self.workdir / "slurm/jobs.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def job_of(self, stage: str) -> str:
        """The id of the stage's newest job."""
        return str([line["job"] for line in self.ledger() if line.get("job") and line["stage"] == stage][-1])

    def wait(self, until: Callable[[], bool] | None = None, seconds: float = 400) -> None:
        """Until SLURM has nothing of this run any more, or until something is so."""
        deadline = time.monotonic() + seconds
        while not until() if until else self.jobs():
            if until:
                assert self.jobs(), f"the chain ended before that: {self.say()}"
            assert time.monotonic() < deadline, f"it goes on: {self.jobs()} {self.say()}"
            hurry()
            time.sleep(POLL_SECONDS)

    def attempts(self, stage: str, element: int = 0) -> list[str | None]:
        return [attempt.status for attempt in read_attempts(self.paths.attempts(stage, element))]

    def done(self, stage: str, element: int = 0) -> bool:
        return self.paths.marker(stage, element).exists()

    def say(self) -> str:
        """All that jobs said, for a failed assertion."""
        folder = self.workdir / "slurm/logs"
        return "\n".join(f"{file.name}: {file.read_text()[-600:]}" for file in sorted(folder.glob("*.out")))

    def outcome(self) -> dict[str, Any]:
        """What must not depend on how the chain was disturbed."""
        summary = read_json(self.workdir / "train/summary.json")
        return {
            "manifest": read_json(self.workdir / "corpora/demo/manifest.json")["fingerprint"],
            "samples": summary["samples_seen"],
            "order": summary["order_digest"],
            "weights": sha256_file(self.workdir / "model/open_clip_model.safetensors"),
            "scores": read_json(self.workdir / "results/aggregate.json")["scores"],
        }

    def again(self, workdir: Path, *gone: str) -> Chain:
        """A copy of this run in which the stages `gone` have yet to be done."""
        shutil.copytree(self.workdir, workdir, ignore=shutil.ignore_patterns("slurm", "mlflow*", "mlartifacts"))
        for stage in gone:
            for file in (workdir / "stages").glob(f"{stage}.*"):
                file.unlink()
            shutil.rmtree(workdir / {"export": "model", "evaluate": "results"}.get(stage, stage), ignore_errors=True)
        return Chain(workdir, self.settings, self.site)

    def planned(self, workdir: Path, *settings: str, sweep: tuple[str, ...] = (), site: str | None = None) -> Chain:
        """Another recipe, or a sweep, on this run's corpus: what comes before training is marked as done."""
        config = load_recipe("demo", (*TINY, *self.settings, *settings))
        run = Run.planned(freeze(settle(config, workdir, sweep_members(sweep))))
        for name in ("corpora", "evaldata"):
            shutil.copytree(self.workdir / name, workdir / name)
        for stage in run.stages:
            if not stage.per_member and stage.name != "compare":
                for number in range(stage.elements):
                    mark_done(run, stage, number, time.time(), [])
        return Chain(workdir, (*self.settings, *settings), self.site, sweep).at(site)

    def at(self, site: str | None) -> Chain:
        """The same run with other settings of the site, as YAML."""
        if site is None:
            return self
        file = self.workdir.with_name(f"{self.workdir.name}.yaml")
        file.write_text(site)
        return replace(self, site=file)


def neuclip(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def slurm(*command: str) -> str:
    """One of SLURM's commands; what it says."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


def hurry() -> None:
    """SLURM starts a job that was requeued two minutes later; here after seconds, in which its nodes forget it."""
    listed = slurm("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i|%r|%S").splitlines()
    for name, reason, start in (line.split("|") for line in listed):
        if reason == "BeginTime" and datetime.fromisoformat(start) - datetime.now() < timedelta(seconds=115):
            subprocess.run(["scontrol", "update", f"JobId={name}", "StartTime=now"], capture_output=True, timeout=60)


def signal_rank(chain: Chain, rank: int, number: int) -> None:
    """Send a signal to one rank of its training."""
    marks = {f"RANK={rank}".encode(), b"SLURM_JOB_ID=" + chain.job_of("train").encode()}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marks <= set((process / "environ").read_bytes().split(b"\0")):
                os.kill(int(process.name), number)
                return
        except OSError:
            continue
    raise AssertionError(f"no rank {rank} runs")
