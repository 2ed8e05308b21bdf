"""On a SLURM that keeps accounts: of what vanished, when slurmctld has forgotten it, `status` has sacct's word."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.slurm.chain import TINY, Chain, processes_of
from tests.slurm.conftest import dev_cluster, needs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800), pytest.mark.usefixtures("in_slices")]

BUSY = 'trap "" TERM; while :; do sleep 1; done'  # in place of a stage's command: it hears nothing until it is killed


@pytest.fixture(scope="module")
def accounting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a SLURM with accounts, whose slurmctld forgets in seconds; others use another at the same time."""
    needs("slurmctld", "slurm-wlm munge")
    needs("slurmdbd", "slurmdbd mariadb-server")
    needs("mariadbd", "slurmdbd mariadb-server")
    folder = tmp_path_factory.mktemp("accounting")
    with dev_cluster(folder, NODES="4", CPUS_PER_NODE="1", MIN_JOB_AGE="2", ACCOUNTING="1"):
        yield folder


def said(folder: Path, *command: str, status: tuple[int, ...] = (0,)) -> str:
    """What a command says on this SLURM."""
    here = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"}
    result = subprocess.run(command, env=here, capture_output=True, text=True, timeout=300)
    assert result.returncode in status, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def neuclip(folder: Path, *arguments: str) -> str:
    return said(folder, sys.executable, "-m", "pipeline", *arguments)


def await_(until: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def kill_all(folder: Path, of: str) -> None:
    """Every process of a job with this in its environment, at once, as a node that is lost ends them."""
    for process in processes_of(folder, also=of):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def test_what_slurmctld_has_forgotten_is_told_with_saccts_word(
    finished: Chain, accounting: Path, tmp_path: Path
) -> None:
    """Elements of an array: cancelled and killed, killed alone, with its node, requeued and then killed alone."""
    busy = json.dumps({"container": {"command": ["bash", "-c", BUSY], "python": sys.executable}})
    chain = finished.again(tmp_path / "run", "verify", "manifest", "report", site=busy)
    submit = ("submit", "demo", "--workdir", str(chain.workdir), "--only", "verify", "--cluster", str(chain.site))
    neuclip(accounting, *submit, *TINY, *chain.settings)
    job = chain.job_of("verify")

    def attempts(element: int) -> list[str | None]:
        return chain.attempts("verify", element)

    def state(element: int) -> str:
        return said(accounting, "squeue", "--noheader", "--format=%T", f"--jobs={job}_{element}", status=(0, 1)).strip()

    await_(lambda: all(attempts(element) == [None] for element in range(4)))
    said(accounting, "scontrol", "requeue", f"{job}_3")
    kill_all(accounting, "SLURM_ARRAY_TASK_ID=3")
    said(accounting, "scancel", f"{job}_0")  # and SLURM kills it KillWait later, as nothing of it ends
    said(accounting, "scancel", "--batch", "--signal=KILL", f"{job}_1")
    said(accounting, "scontrol", "update", f"JobId={job}_2", "Requeue=0")
    node = said(accounting, "squeue", "--noheader", "--format=%N", f"--jobs={job}_2").strip()
    os.kill(int((accounting / f"run/slurmd.{node}.pid").read_text()), signal.SIGKILL)
    said(accounting, "scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
    kill_all(accounting, "SLURM_ARRAY_TASK_ID=2")
    await_(lambda: state(3) == "PENDING")
    said(accounting, "scontrol", "update", f"JobId={job}_3", "StartTime=now")
    await_(lambda: attempts(3) == [None, None])
    said(accounting, "scancel", "--batch", "--signal=KILL", f"{job}_3")
    known = ("squeue", "--noheader", "--states=all", "--format=%i", f"--jobs={job}")
    await_(lambda: said(accounting, *known, status=(0, 1)) == "")

    of_accounts = said(accounting, "sacct", "--noheader", "--parsable2", "--duplicates", f"--jobs={job}")
    assert [line.split("|")[0] for line in of_accounts.splitlines()].count(f"{job}_3") == 2
    status = json.loads(neuclip(accounting, "status", str(chain.workdir), "--json"))["stages"]["verify"]
    assert status["failed"] == 4, of_accounts
    assert status["failures"] == {
        "0": f"vanished: SLURM says CANCELLED by {os.getuid()}, somebody cancelled it",
        "1": "vanished: SLURM says FAILED, its processes were killed (kill -9, or a node out of memory)",
        "2": "vanished: SLURM says NODE_FAIL, its node was lost",
        "3": "vanished: SLURM says FAILED, its processes were killed (kill -9, or a node out of memory)",
    }
