"""Arrays on a real SLURM: longer than it allows, throttled, two runs at once, a sweep, an element that always fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.files import read_json
from pipeline.launch.ports import free_port
from pipeline.launch.slurm.arrays import expanded
from tests.slurm.chain import FROM_TRAINING, SITE, Chain, slurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800), pytest.mark.usefixtures("in_slices")]

ALONE = "train: {tasks_per_node: 1}\n"


@pytest.fixture(scope="module")
def both(cluster: Path, finished: Chain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Chain, Chain]:
    """Two runs at once: 11 work items on a SLURM that allows arrays of 4, two elements at a time; a sweep of 2 x 2."""
    folder = tmp_path_factory.mktemp("both")
    throttled = folder / "throttled.yaml"
    throttled.write_text(f"{SITE}ingest: {{throttle: 2}}\n")
    settings = ("corpus.tasks=11", f"corpus.port={free_port()}", "tracking.mlflow=false")
    many = Chain(folder / "many", settings, throttled)
    assert many.submit().returncode == 0
    axes = ("objective=neuclip,fastclip", "seed=0,1")
    shorter = ("train.epochs=2", "evaluate.tasks=[scenes-unseen]")
    sweep = finished.again(folder / "sweep", *FROM_TRAINING, "compare", settings=shorter, sweep=axes, site=ALONE)
    assert sweep.submit().returncode == 0
    return many, sweep


def test_submitted_twice_in_a_row_it_is_in_the_queue_once(both: tuple[Chain, Chain]) -> None:
    many, _ = both
    before = many.ledger()
    again = many.submit()
    assert again.returncode == 0, again.stderr
    assert "in the queue already" in again.stdout
    assert many.ledger() == before


def test_more_elements_than_an_array_may_have(both: tuple[Chain, Chain]) -> None:
    many, _ = both
    parts = [line for line in many.ledger() if line["stage"] == "download"]
    assert [(line["offset"], line["elements"]) for line in parts] == [(0, "0-3"), (4, "4-7"), (8, "8-10")]
    arrays = [next(a for a in line["command"] if a.startswith("--array=")) for line in parts]
    assert arrays == ["--array=0-3%2", "--array=0-3%2", "--array=0-2%2"]
    downloading, most = {line["job"] for line in parts}, 0

    def ended() -> bool:
        nonlocal most
        running = [name for name, state in many.jobs().items() if state == "RUNNING"]
        most = max(most, sum(name.split("_")[0] in downloading for name in running))
        return all(many.done("download", element) and None not in attempts(element) for element in range(11))

    def attempts(element: int) -> list[str | None]:  # None: its end is written a moment after the marker
        return many.attempts("download", element)

    many.wait(until=ended, looks=1)
    assert most == 2
    assert [attempts(element) for element in range(11)] == [["done"]] * 11


def test_cancel_takes_only_the_runs_own_jobs(both: tuple[Chain, Chain]) -> None:
    many, sweep = both
    others = sweep.jobs().keys()
    said = many.command("cancel")
    assert re.search(r"^cancelled report \S+ \(job \d+\)$", said, re.MULTILINE)
    many.wait()
    cancelled = {line["stage"] for line in many.ledger() if line["event"] == "cancelled"}
    assert "report" in cancelled
    assert "cancelled" not in {line["event"] for line in sweep.ledger()}
    assert not any(line["job"] in others for line in many.ledger() if line["event"] == "submitted")


def test_a_sweep_is_an_array_of_trainings_and_a_comparison(both: tuple[Chain, Chain]) -> None:
    _, sweep = both
    [training] = [line for line in sweep.ledger() if line["stage"] == "train"]
    assert expanded(training["elements"]) == [0, 1, 2, 3]
    sweep.wait()
    status = json.loads(sweep.command("status", "--json"))
    assert status["done"], sweep.say()
    members = {folder.name for folder in (sweep.workdir / "members").iterdir()}
    assert members == {f"objective={name},seed={seed}" for name in ("neuclip", "fastclip") for seed in (0, 1)}
    for name in members:
        summary = read_json(sweep.workdir / "members" / name / "train/summary.json")
        assert name.startswith(f"objective={summary['objective']},")
    compared = read_json(sweep.workdir / "summary.json")["members"]
    assert set(compared) == members
    assert all(entry["evaluate"]["scenes-unseen"]["score"] is not None for entry in compared.values())


def test_an_element_that_always_fails(finished: Chain, tmp_path: Path) -> None:
    """The others finish, the chain stops with the reason; mended, only that element and what needs it is done."""
    chain = finished.again(tmp_path / "failing", "verify", "manifest", "report")
    in_the_way = chain.workdir / "corpora/demo/verify/00002.json"
    in_the_way.unlink()
    (in_the_way / "not a file").mkdir(parents=True)
    assert chain.submit().returncode == 0
    chain.wait()
    status = json.loads(chain.command("status", "--json"))["stages"]
    assert (status["verify"]["done"], status["verify"]["failed"]) == (3, 1), chain.say()
    assert "00002.json" in status["verify"]["failures"]["2"]
    assert "neuclip retry" in chain.command("status")
    reasons = {line["stage"]: line["reason"] for line in chain.ledger() if line["event"] == "cancelled"}
    assert set(reasons) == {"manifest", "train", "export", "evaluate", "report"}
    assert all("needs verify 2" in reason for reason in reasons.values())
    assert chain.attempts("manifest") == []

    (in_the_way / "not a file").rmdir()
    in_the_way.rmdir()
    chain.command("retry")
    chain.wait()
    assert [chain.attempts("verify", element) for element in range(4)] == [
        *[["done"]] * 2,
        ["failed", "done"],
        ["done"],
    ]
    assert chain.outcome() == finished.outcome()
    assert chain.done("report")


def test_a_stop_file_ends_the_chain_until_it_is_removed(finished: Chain, tmp_path: Path) -> None:
    chain = finished.again(tmp_path / "stopped", "export", "evaluate", "report")
    assert chain.submit().returncode == 0
    (chain.workdir / "STOP").touch()
    chain.wait()
    assert not chain.done("evaluate")
    refused = chain.submit()
    assert refused.returncode == 2
    assert "STOP exists" in refused.stderr
    (chain.workdir / "STOP").unlink()
    chain.command("retry", "--only", "export")
    chain.wait()
    assert chain.done("export")
    assert slurm("squeue", "--noheader", "--states=PENDING", "--format=%r").count("DependencyNeverSatisfied") == 0
