"""The whole chain on a real SLURM: as it should go, and disturbed in every way that SLURM knows."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from pipeline.files import read_json
from pipeline.launch.attempts import read_attempts
from tests.slurm.chain import SITE, Chain, signal_rank, slurm
from tests.slurm.conftest import DEV_CLUSTER

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

STAGES = ["fabricate", "plan", "download", "verify", "manifest", "train", "export", "evaluate", "report"]
FROM_TRAINING = ("train", "export", "evaluate", "report")


@pytest.fixture(scope="module")
def sliced(finished: Chain, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Training for which a real time limit is far too short; it goes on while the other tests run."""
    site = f"{SITE[:-2]}, time: '3'}}\nsignal_seconds: 50\n"
    chain = finished.planned(
        tmp_path_factory.mktemp("sliced") / "run", "train.epochs=1000", "checkpoint.every=50", site=site
    )
    assert chain.submit("--only", "train").returncode == 0
    return chain


def test_everything_is_done_and_recorded_once(finished: Chain) -> None:
    status = json.loads(finished.command("status", "--json"))
    assert list(status["stages"]) == STAGES
    assert all(entry["done"] == entry["total"] for entry in status["stages"].values()), finished.say()
    assert status["stages"]["download"]["total"] == 4
    assert (finished.workdir / "report.html").exists()
    assert read_json(finished.workdir / "train/summary.json")["world_size"] == 2
    assert set(read_json(finished.workdir / "mlflow.json")["runs"]) == set(STAGES)


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
    chain = finished.again(tmp_path / "disturbed", *FROM_TRAINING)
    assert chain.submit().returncode == 0

    def saved(step: int) -> bool:
        tags = (chain.workdir / "train/checkpoints").glob("step-*/COMPLETE")
        return any(int(tag.parent.name.removeprefix("step-")) >= step for tag in tags)

    def again(attempt: int) -> bool:
        return len(chain.attempts("train")) == attempt

    chain.wait(until=lambda: saved(5))
    slurm("scancel", "--batch", "--signal=USR1", chain.job_of("train"))  # as --signal=B:USR1@300 has it done
    chain.wait(until=lambda: again(2))
    assert chain.attempts("train")[0] == "stopped"
    chain.wait(until=lambda: saved(10))
    slurm("scontrol", "requeue", chain.job_of("train"))
    chain.wait(until=lambda: again(3))
    chain.wait(until=lambda: saved(20))
    signal_rank(chain, 1, signal.SIGKILL)
    chain.wait(until=lambda: again(4))
    chain.wait(until=lambda: saved(30))
    signal_rank(chain, 1, signal.SIGSTOP)  # with its node, a rank falls silent
    os.kill(int((cluster / "run/slurmd.n2.pid").read_text()), signal.SIGKILL)
    chain.wait(until=lambda: "State=DOWN" in slurm("scontrol", "show", "node", "n2"))
    subprocess.run([DEV_CLUSTER / "up", cluster], check=True, capture_output=True, timeout=90)
    chain.wait()
    assert chain.attempts("train")[-1] == "done", chain.say()
    assert len(chain.attempts("train")) >= 5
    assert chain.outcome() == finished.outcome()


@pytest.mark.usefixtures("sliced")
def test_cancelled_elements_wait_for_their_owner(finished: Chain, tmp_path: Path) -> None:
    """scancel is somebody's will: what needs the element is released, and `retry` does that alone."""
    chain = finished.again(tmp_path / "cancelled", "verify", "manifest")
    assert chain.submit().returncode == 0
    slurm("scancel", f"{chain.job_of('verify')}_1")
    chain.wait()
    assert [chain.done("verify", element) for element in range(4)] == [True, False, True, True]
    assert not chain.done("manifest")
    assert "retry" in chain.command("status")
    assert "verify 1" in chain.command("retry")
    chain.wait()
    assert [chain.attempts("verify", element)[-1:] for element in range(4)] == [["done"]] * 4
    assert len(chain.attempts("verify", 0)) == 1
    assert chain.outcome() == finished.outcome()


def test_evaluation_comes_back_up_to_a_bound(finished: Chain, tmp_path: Path) -> None:
    chain = finished.again(tmp_path / "bounded", "evaluate", "report").at("max_requeues: 1\n")
    assert chain.submit().returncode == 0
    for attempt in (1, 2):
        chain.wait(until=lambda attempt=attempt: chain.attempts("evaluate")[attempt - 1 :] == [None])
        slurm("scancel", "--batch", "--signal=USR1", chain.job_of("evaluate"))
        chain.wait(until=lambda attempt=attempt: chain.attempts("evaluate")[attempt - 1 :] == ["stopped"])
    chain.wait()
    assert chain.attempts("evaluate") == ["stopped", "stopped"]
    assert "max_requeues=1 are used up" in chain.say()
    assert chain.attempts("report") == []  # released without having run


def test_a_time_limit_cuts_training_into_slices(sliced: Chain) -> None:
    """Asked to stop ahead of it, the job comes back, twice; each slice goes on exactly where the last one ended."""
    sliced.wait(until=lambda: len(sliced.attempts("train")) == 3, seconds=600)
    assert re.search(r"^cancelled train 0 \(job \d+\)$", sliced.command("cancel"), re.MULTILINE)
    sliced.wait()
    first, second, _ = read_attempts(sliced.paths.attempts("train", 0))
    assert (first.status, second.status) == ("stopped", "stopped"), sliced.say()
    log = (sliced.workdir / "logs/train.0.log").read_text()
    stops = re.findall(r"^stopped: on request, after step (\d+) of", log, re.MULTILINE)
    goes_on = re.findall(r"continuing at step (\d+)$", log, re.MULTILINE)
    assert len(stops) >= 2
    assert goes_on == stops[: len(goes_on)]
    steps = [json.loads(line)["step"] for line in (sliced.workdir / "train/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(2, steps[-1] + 1, 2))  # each once
