"""The scripts themselves: shellcheck, SLURM's own opinion, the cluster that comes up and goes down."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.config.cluster import KINDS
from pipeline.launch.slurm.site import SCRIPTS
from tests.slurm.chain import Chain, neuclip, processes_of, slurm
from tests.slurm.conftest import DEV_CLUSTER

pytestmark = pytest.mark.slurm


def test_shellcheck_finds_nothing(finished: Chain) -> None:
    scripts = [*SCRIPTS.glob("*.sbatch"), *DEV_CLUSTER.iterdir(), finished.workdir / "slurm/setup.sh"]
    assert len(scripts) == len(KINDS) + 3
    checked = subprocess.run(["shellcheck", "--shell=bash", *scripts], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_slurm_would_take_it(cluster: Path, kind: str, tmp_path: Path) -> None:
    script = [str(SCRIPTS / f"{kind}.sbatch"), str(tmp_path), kind]
    tested = subprocess.run(["sbatch", "--test-only", "--output=/dev/null", *script], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr
    assert "to start at" in tested.stderr


def test_by_hand_with_the_same_arguments(finished: Chain) -> None:
    said = finished.workdir / "slurm/logs/by-hand.out"
    slurm("sbatch", "--wait", f"--output={said}", str(SCRIPTS / "report.sbatch"), str(finished.workdir), "report")
    assert "done before" in said.read_text()


def test_dry_run_submits_and_writes_nothing(cluster: Path, tmp_path: Path) -> None:
    before = slurm("squeue", "--noheader")
    said = neuclip("submit", "demo", "--dry-run", "corpus.tasks=11", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("to start at") == said.stdout.count("=$(sbatch --parsable ") == 13
    assert "--array=0-2 " in said.stdout  # elements 8 to 10, as MaxArraySize is 4
    assert said.stdout.count("--dependency=afterany:$JOB4 ") == 1  # each part of `verify` waits for its items alone
    assert "--dependency=afterany:$JOB6:$JOB7:$JOB8 " in said.stdout
    assert "GPU-hours" in said.stdout
    assert list(tmp_path.iterdir()) == []
    assert slurm("squeue", "--noheader") == before


def test_up_is_idempotent_and_down_leaves_nothing(tmp_path: Path) -> None:
    """A cluster of its own, with a job that goes on when its daemon is killed."""
    environment = {**os.environ, "NODES": "1"}
    up = [subprocess.run([DEV_CLUSTER / "up", tmp_path], env=environment, capture_output=True, text=True) for _ in "12"]
    assert [result.returncode for result in up] == [0, 0], up[-1].stderr
    assert up[0].stdout == up[1].stdout == f"export SLURM_CONF={tmp_path}/slurm.conf\n"
    here = {**os.environ, "SLURM_CONF": f"{tmp_path}/slurm.conf"}
    subprocess.run(["sbatch", "--wrap", "sleep 1000", "--output=/dev/null"], env=here, check=True, capture_output=True)
    while not processes_of(tmp_path, also="SLURM_JOB_ID="):
        time.sleep(0.1)
    os.kill(int((tmp_path / "run/slurmd.n1.pid").read_text()), signal.SIGKILL)
    subprocess.run([DEV_CLUSTER / "down", tmp_path], check=True, timeout=90)
    assert not processes_of(tmp_path)
