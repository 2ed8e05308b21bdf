"""A tiny demo as a chain of SLURM jobs: submit it, disturb it, wait for its end, compare."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
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
    "corpus.scenes=160", "corpus.evaluation_scenes=64", "corpus.samples_per_shard=50", "corpus.retries=0",
    "train.epochs=12", "train.global_batch_size=32", "train.log_every_steps=2", "optimizer.warmup=5",
    "checkpoint.every=5", "diagnostics.every_steps=20", "diagnostics.reference_samples=64",
    "model.config.vision_cfg.image_size=32", "evaluate.elements=2",
)  # fmt: skip
SITE = "train: {nodes: 2, tasks_per_node: 1}\n"
FROM_TRAINING = ("train", "export", "evaluate", "report")
MADE_BY = {"corpora": "plan", "evaldata": "fabricate", "train": "train", "model": "export", "results": "evaluate"}
POLL_SECONDS = 0.5


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

    def saved(self) -> int:
        """The step of training's newest checkpoint, 0 before the first."""
        whole = (self.workdir / "train/checkpoints").glob("step-*/COMPLETE")
        return max((int(file.parent.name.removeprefix("step-")) for file in whole), default=0)

    def wait(self, until: Callable[[], bool] | None = None, looks: int = 10, seconds: float = 1200) -> None:
        """Until SLURM has nothing of this run any more, or something is so, which is looked at so often in between."""
        deadline = time.monotonic() + seconds
        while True:
            for _ in range(looks):
                if until is not None and until():
                    return
                time.sleep(POLL_SECONDS / looks)
            jobs = self.jobs()
            if not jobs:
                assert until is None or until(), f"the chain ended before that: {self.say()}"
                return
            assert time.monotonic() < deadline, f"it goes on: {jobs} {self.say()}"
            hurry()

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

    def again(
        self,
        workdir: Path,
        *gone: str,
        settings: tuple[str, ...] = (),
        sweep: tuple[str, ...] = (),
        site: str | None = None,
    ) -> Chain:
        """A copy of this run in which the stages `gone` have yet to be done, in one evaluation and without MLflow.

        settings: other ones, of stages that are gone. site: other settings of the site, as YAML.
        """
        settings = (*self.settings, "tracking.mlflow=false", "evaluate.elements=1", *settings)
        run = Run.planned(freeze(settle(load_recipe("demo", (*TINY, *settings)), workdir, sweep_members(sweep))))
        for folder, stage in MADE_BY.items():
            if stage not in gone:
                shutil.copytree(self.workdir / folder, workdir / folder)
        for stage in run.stages:
            for number in range(stage.elements if stage.name not in gone else 0):
                mark_done(run, stage, number, time.time(), [])
        of_site = self.site
        if site is not None:
            of_site = workdir.with_name(f"{workdir.name}.yaml")
            of_site.write_text(site)
        return Chain(workdir, settings, of_site, sweep)


def neuclip(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd)


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


def processes_of(cluster: Path, *, also: str = "") -> dict[int, set[str]]:
    """{process: its environment} of all that a SLURM runs. also: with which a variable of it begins."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = set((process / "environ").read_text(errors="replace").split("\0"))
        except OSError:
            continue
        if f"SLURM_CONF={cluster}/slurm.conf" in environment and any(value.startswith(also) for value in environment):
            found[int(process.name)] = environment
    return found


def rank_of(chain: Chain, rank: int) -> int:
    """The process of one rank of its training, of which forked children have the same environment."""
    job = {f"RANK={rank}", f"SLURM_JOB_ID={chain.job_of('train')}"}
    found = [
        process for process, values in processes_of(Path(os.environ["SLURM_CONF"]).parent).items() if job <= values
    ]
    [first] = [process for process in found if parent_of(process) not in found]
    return first


def parent_of(process: int) -> int:
    return int(_status(process)["PPid"])


def is_pending(process: int, number: int) -> bool:
    """Whether a stopped process has yet to be told of a signal; also once it is gone."""
    try:
        return bool(int(_status(process)["ShdPnd"], 16) >> (number - 1) & 1)
    except OSError:
        return True


def _status(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
