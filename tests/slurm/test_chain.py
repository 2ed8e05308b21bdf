"""The whole chain on a real SLURM: as it should go, and disturbed in every way that SLURM knows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.files import read_json
from tests.slurm.chain import FROM_TRAINING, SITE, Chain, parent_of, rank_of, slurm
from tests.slurm.conftest import DEV_CLUSTER

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800), pytest.mark.usefixtures("in_slices")]

INGEST = ["fabricate", "plan", "download", "verify", "manifest"]
STAGES = [*INGEST, "train", "export", "evaluate", "aggregate", "report"]


def test_everything_is_done(finished: Chain) -> None:
    status = json.loads(finished.command("status", "--json"))
    assert list(status["stages"]) == STAGES
    assert all(entry["done"] == entry["total"] for entry in status["stages"].values()), finished.say()
    assert (status["stages"]["download"]["total"], status["stages"]["evaluate"]["total"]) == (4, 2)
    assert (finished.workdir / "report.html").exists()
    assert read_json(finished.workdir / "train/summary.json")["world_size"] == 2


def test_mlflow_has_one_tree_of_it(finished: Chain) -> None:
    """Written by ten jobs and arrays, one after the other."""
    from mlflow import MlflowClient

    finished.command("sync")  # what was late on a busy machine
    uri = f"sqlite:///{finished.workdir}/mlflow.db"
    client, known = MlflowClient(uri, uri), read_json(finished.workdir / "mlflow.json")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in runs}
    assert parents == {known["parent_run_id"]: None, **dict.fromkeys(known["runs"].values(), known["parent_run_id"])}
    assert set(known["runs"]) == {"ingest", "train", "evaluate"}
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_ranks_were_on_both_nodes(finished: Chain) -> None:
    began = json.loads((finished.workdir / "stages/train.0.attempts.jsonl").read_text().splitlines()[0])
    assert began["job"]["nodes"] == "n[1-2]"
    assert " srun " in (finished.workdir / "logs/train.0.log").read_text()


def test_submitting_what_is_done_does_nothing(finished: Chain) -> None:
    before = finished.ledger()
    again = finished.submit()
    assert again.returncode == 0, again.stderr
    assert "Nothing to submit" in again.stdout
    assert finished.ledger() == before


def test_another_recipe_is_refused_with_the_difference(finished: Chain) -> None:
    other = finished.submit(settings=("seed=7",))
    assert other.returncode == 2
    assert "seed: 0 -> 7" in other.stderr


def test_training_goes_on_whatever_is_done_to_it(finished: Chain, cluster: Path, tmp_path: Path) -> None:
    """Stopped ahead of time, requeued, a rank killed, a node lost: the same samples, the same weights."""
    here = f"{SITE[:-2]}, sbatch_flags: ['--nodelist=n[1-2]']}}\n"
    chain = finished.again(tmp_path / "disturbed", *FROM_TRAINING, site=here)
    assert chain.submit().returncode == 0

    def again(attempt: int) -> bool:
        return len(chain.attempts("train")) == attempt

    chain.wait(until=lambda: chain.saved() >= 5)
    slurm("scancel", "--batch", "--signal=USR1", chain.job_of("train"))  # as --signal=B:USR1@300 has it done
    chain.wait(until=lambda: again(2))
    assert chain.attempts("train")[0] == "stopped"
    chain.wait(until=lambda: chain.saved() >= 10)
    slurm("scontrol", "requeue", chain.job_of("train"))
    chain.wait(until=lambda: again(3))
    chain.wait(until=lambda: chain.saved() >= 20)
    os.kill(rank_of(chain, 1), signal.SIGKILL)
    chain.wait(until=lambda: again(4))
    chain.wait(until=lambda: chain.saved() >= 30)
    rank = rank_of(chain, 1)
    of_node = (parent_of(rank), rank)
    os.kill(rank, signal.SIGSTOP)  # with its node, a rank falls silent
    os.kill(int((cluster / "run/slurmd.n2.pid").read_text()), signal.SIGKILL)
    chain.wait(until=lambda: "State=DOWN" in slurm("scontrol", "show", "node", "n2"), looks=1)
    for process in of_node:  # what ran there is gone before the node comes back, or it would be taken for the new step
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    subprocess.run([DEV_CLUSTER / "up", cluster], check=True, capture_output=True)
    chain.wait()
    assert chain.attempts("train")[-1] == "done", chain.say()
    assert len(chain.attempts("train")) >= 5
    assert chain.outcome() == finished.outcome()


def test_cancelled_elements_wait_for_their_owner(finished: Chain, tmp_path: Path) -> None:
    """scancel is somebody's will: what needs the element is released, and `retry` does that alone."""
    held = "ingest: {sbatch_flags: [--hold]}\n"  # or the element might be done before it can be cancelled
    chain = finished.again(tmp_path / "cancelled", "verify", "manifest", "report", site=held)
    assert chain.submit().returncode == 0
    slurm("scancel", f"{chain.job_of('verify')}_1")
    slurm("scontrol", "release", chain.job_of("verify"))
    chain.wait()
    assert [chain.done("verify", element) for element in range(4)] == [True, False, True, True]
    assert not chain.done("manifest")
    assert "retry" in chain.command("status")
    assert "verify 1" in chain.command("retry")
    slurm("scontrol", "release", chain.job_of("verify"))
    chain.wait()
    assert [chain.attempts("verify", element)[-1:] for element in range(4)] == [["done"]] * 4
    assert len(chain.attempts("verify", 0)) == 1
    assert chain.outcome() == finished.outcome()


def test_evaluation_comes_back_up_to_a_bound(finished: Chain, tmp_path: Path) -> None:
    chain = finished.again(tmp_path / "bounded", "evaluate", "report", site="max_requeues: 1\n")
    assert chain.submit().returncode == 0
    for attempt in (1, 2):
        chain.wait(until=lambda attempt=attempt: chain.attempts("evaluate")[attempt - 1 :] == [None])
        slurm("scancel", "--batch", "--signal=USR1", chain.job_of("evaluate"))
        chain.wait(until=lambda attempt=attempt: chain.attempts("evaluate")[attempt - 1 :] == ["stopped"])
    chain.wait()
    assert chain.attempts("evaluate") == ["stopped", "stopped"]
    assert "max_requeues=1 are used up" in chain.say()
    assert chain.attempts("report") == []  # released without having run


def test_what_was_killed_without_a_word_says_what_slurm_knows(finished: Chain, tmp_path: Path) -> None:
    chain = finished.again(tmp_path / "vanished", "evaluate", "report")
    assert chain.submit().returncode == 0
    chain.wait(until=lambda: chain.attempts("evaluate") == [None])
    slurm("scancel", "--batch", "--signal=KILL", chain.job_of("evaluate"))
    chain.wait()
    assert "vanished: SLURM says FAILED" in chain.command("status")
    assert json.loads(chain.command("status", "--json"))["stages"]["report"]["blocked"] == 1
