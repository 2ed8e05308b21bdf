"""The whole chain on a real SLURM: as it should go, and disturbed in every way that SLURM knows."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.slurm.chain import Chain, kill_daemon, slurm
from tests.slurm.conftest import DEV_CLUSTER

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

STAGES = ["fabricate", "plan", "download", "verify", "manifest", "train", "export", "evaluate", "report"]


def test_everything_is_done_and_recorded_once(finished: Chain) -> None:
    status = json.loads(finished.command("status", "--json"))
    assert list(status["stages"]) == STAGES
    assert all(entry["done"] == entry["total"] for entry in status["stages"].values()), finished.say()
    assert status["stages"]["download"]["total"] == 4
    assert (finished.workdir / "report.html").exists()
    assert json.loads((finished.workdir / "train/summary.json").read_text())["world_size"] == 2
    runs = json.loads((finished.workdir / "mlflow.json").read_text())["runs"]
    assert set(runs) == set(STAGES)


def test_ranks_were_on_both_nodes(finished: Chain) -> None:
    began = json.loads((finished.workdir / "stages/train.0.attempts.jsonl").read_text().splitlines()[0])
    assert began["job"]["nodes"] == "n[1-2]"
    assert "torchrun" not in (finished.workdir / "logs/train.0.log").read_text()


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
    """Stopped ahead of a time limit, requeued, its node lost, a rank killed: the same samples, the same weights."""
    chain = finished.again(tmp_path / "disturbed", "train", "export", "evaluate", "report")
    assert chain.submit().returncode == 0
    checkpoints = chain.workdir / "train/checkpoints"

    def saved(step: int) -> bool:
        return any(int(tag.parent.name[5:]) >= step for tag in checkpoints.glob("step-*/COMPLETE"))

    chain.wait(until=lambda: saved(5))
    slurm("scancel", "--batch", "--signal=USR1", chain.job_of("train"))  # as --signal=B:USR1@... does
    chain.wait(until=lambda: chain.attempts("train") == ["stopped", None])
    chain.wait(until=lambda: saved(15))
    slurm("scontrol", "requeue", chain.job_of("train"))
    chain.wait(until=lambda: len(chain.attempts("train")) == 3)
    chain.wait(until=lambda: saved(25))
    kill_daemon(cluster, "n2")
    subprocess.run([DEV_CLUSTER / "up", cluster], check=True, capture_output=True, timeout=90)
    chain.wait()
    assert chain.attempts("train")[-1] == "done", chain.say()
    assert len(chain.attempts("train")) >= 4
    assert chain.outcome() == finished.outcome()


def test_a_slice_shorter_than_training(finished: Chain, tmp_path: Path) -> None:
    """A real time limit: asked to stop ahead of it, the job comes back until all is done."""
    site = tmp_path / "cluster.yaml"
    site.write_text("train: {nodes: 2, tasks_per_node: 1, time: '2'}\nsignal_seconds: 40\n")
    workdir = finished.again(tmp_path / "sliced", "train", "export", "evaluate", "report").workdir
    chain = Chain(workdir, (*finished.settings, "checkpoint.every=1000"), site)


def test_a_cancelled_element_waits_for_its_owner(finished: Chain, tmp_path: Path) -> None:
    """scancel is somebody's will: the element stays out, what needs it is released, and `retry` does the rest."""
    chain = finished.again(tmp_path / "cancelled", "verify", "manifest")
    assert chain.submit().returncode == 0
    chain.wait(until=lambda: f"{chain.job_of('verify')}_1" in chain.jobs())
    slurm("scancel", f"{chain.job_of('verify')}_1")
    chain.wait()
    assert [chain.done("verify", element) for element in range(4)] == [True, False, True, True]
    assert not chain.done("manifest")
    chain.command("retry")
    chain.wait()
    assert chain.attempts("verify", 0) == ["done"]
    assert chain.outcome() == finished.outcome()


def test_preempted_ingest_comes_back(finished: Chain, tmp_path: Path) -> None:
    chain = finished.again(tmp_path / "preempted", "evaluate", "report")
    assert chain.submit("--only", "evaluate").returncode == 0
    chain.wait(until=lambda: chain.attempts("evaluate") == [None])
    slurm("scancel", "--batch", "--signal=USR1", chain.job_of("evaluate"))
    chain.wait()
    assert chain.attempts("evaluate") == ["stopped", "done"]


def test_a_bound_on_coming_back(finished: Chain, tmp_path: Path) -> None:
    site = tmp_path / "cluster.yaml"
    site.write_text("max_requeues: 0\n")
    chain = Chain(finished.again(tmp_path / "bounded", "evaluate", "report").workdir, finished.settings, site)
    assert chain.submit().returncode == 0
    chain.wait(until=lambda: chain.attempts("evaluate") == [None])
    slurm("scancel", "--batch", "--signal=USR1", chain.job_of("evaluate"))
    chain.wait()
    assert chain.attempts("evaluate") == ["stopped"]
    assert "max_requeues=0" in chain.say()
    assert chain.attempts("report") == []  # released, without having run
