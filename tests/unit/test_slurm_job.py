"""Within a job: how commands and ranks are started, and what the job does when its element has ended."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from pipeline.config.cluster import Cluster
from pipeline.config.loader import load_recipe
from pipeline.errors import UserError
from pipeline.launch import ports
from pipeline.launch.attempts import begin_attempt, end_attempt
from pipeline.launch.paths import RunPaths
from pipeline.launch.ports import PORTS, free_port
from pipeline.launch.run import Run
from pipeline.launch.slurm import after as after_module
from pipeline.launch.slurm import commands, jobs
from pipeline.launch.slurm.after import after, ending
from pipeline.launch.slurm.commands import Ended, Told
from pipeline.launch.slurm.ended import explained
from pipeline.launch.slurm.ranks import standard_variables
from pipeline.launch.slurm.srun import launched
from pipeline.launch.state import VANISHED, run_state

JOB = {"SLURM_JOB_ID": "4711", "SLURMD_NODENAME": "n1", "SLURM_CPUS_PER_TASK": "12"}
COMMAND = [sys.executable, "-m", "pipeline", "export"]


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "node_address", lambda node: f"{node}.cluster")


def test_ranks_get_the_variables_of_every_launcher() -> None:
    task = {"SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NTASKS": "16", "SLURM_CPUS_PER_TASK": "12"}
    expected = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "OMP_NUM_THREADS": "12"}
    assert standard_variables(task) == expected
    assert standard_variables({**task, "OMP_NUM_THREADS": "2"})["OMP_NUM_THREADS"] == "2"


def test_ranks_are_started_by_srun_and_meet_on_the_first_node() -> None:
    cluster = Cluster.model_validate({"srun_flags": ["--cpu-bind=cores"]})
    argv = launched(cluster, COMMAND, together=True, environment=JOB)
    assert argv[:2] == ["env", "MASTER_ADDR=n1.cluster"]
    assert int(argv[2].removeprefix("MASTER_PORT=")) in PORTS
    assert argv[3] == "srun"
    assert {"--cpus-per-task=12", "--cpu-bind=cores"} <= set(argv)
    assert argv[-7:] == [sys.executable, "-m", "pipeline.launch.slurm.ranks", *COMMAND]
    assert launched(cluster, COMMAND, together=False, environment=JOB) == COMMAND
    with pytest.raises(UserError, match="within a job"):
        launched(cluster, COMMAND, together=True, environment={})


def test_containers_hold_the_commands_and_their_python() -> None:
    apptainer = Cluster.model_validate({"container": {"command": ["apptainer", "exec", "clip.sif"], "python": "py"}})
    inside = ["apptainer", "exec", "clip.sif", "py", "-m", "pipeline", "export"]
    assert launched(apptainer, COMMAND, together=False, environment=JOB) == inside
    ranks = launched(apptainer, COMMAND, together=True, environment=JOB)
    assert ranks[ranks.index("apptainer") :][3:6] == ["py", "-m", "pipeline.launch.slurm.ranks"]
    pyxis = Cluster.model_validate({"container": {"srun_flags": ["--container-image=clip.sqsh"]}})
    alone = launched(pyxis, COMMAND, together=False, environment=JOB)
    assert alone[:3] == ["srun", "--nodes=1", "--ntasks=1"]
    assert alone[-5:] == ["--container-image=clip.sqsh", "python3", "-m", "pipeline", "export"]


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = free_port(), free_port()
    monkeypatch.setattr(ports.random, "sample", lambda choice, tries: [first, second])
    assert free_port() == first
    for address in ("", "127.0.0.1"):
        with socket.create_server((address, first)):
            assert free_port() == second


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.planned(RunPaths(tmp_path / "run", load_recipe("demo")))
    (tmp_path / "run/slurm").mkdir(parents=True)
    (tmp_path / "run/slurm/cluster.yaml").write_text("max_requeues: 2")
    return run


class _Slurm:
    """Notes what is asked of it."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, state: str = "RUNNING", reason: str = "None", restarts: int = 0
    ) -> None:
        self.requeued: list[str] = []
        self.released: list[tuple[str, int]] = []
        monkeypatch.setattr(commands, "told", lambda name: Told(state, reason, restarts))
        monkeypatch.setattr(commands, "requeue", self.requeued.append)
        monkeypatch.setattr(after_module, "release", lambda run, ended: self.released.append(ended) or {})


def job(restarts: int = 0) -> dict[str, str]:
    return {"id": "101", "array_id": "100", "array_index": "7", "restarts": str(restarts)}


def test_a_stopped_element_requeues_itself_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = _Slurm(monkeypatch, restarts=1)
    after(run, "evaluate", 0, 75, job(restarts=1))
    assert (slurm.requeued, slurm.released) == (["100_7"], [])  # "100" would be the whole array


def test_only_so_often(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = _Slurm(monkeypatch, restarts=2)
    after(run, "evaluate", 0, 75, job(restarts=2))
    assert (slurm.requeued, slurm.released) == ([], [("evaluate", 0)])


def test_what_slurm_brings_back_is_left_to_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = _Slurm(monkeypatch, state="COMPLETING", restarts=1)
    ending(run, job())
    after(run, "evaluate", 0, 75, job())
    assert (slurm.requeued, slurm.released) == ([], [])


def test_what_somebody_cancelled_does_not_come_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = _Slurm(monkeypatch, state="COMPLETING")
    ending(run, job())
    assert (slurm.requeued, slurm.released) == ([], [])
    after(run, "evaluate", 0, 75, job())
    assert (slurm.requeued, slurm.released) == ([], [("evaluate", 0)])


@pytest.mark.parametrize(("restarts", "requeued"), [(1, ["100_7"]), (2, [])])
def test_killed_at_its_time_limit_it_comes_back_too(
    run: Run, monkeypatch: pytest.MonkeyPatch, restarts: int, requeued: list[str]
) -> None:
    slurm = _Slurm(monkeypatch, state="COMPLETING", reason="TimeLimit", restarts=restarts)
    ending(run, job(restarts))
    assert (slurm.requeued, slurm.released) == (requeued, [])


def test_asked_to_end_while_there_is_time_to_save_it_takes_that_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preemption with a grace period: to be requeued at once would end it at once."""
    slurm = _Slurm(monkeypatch)
    ending(run, job())
    assert slurm.requeued == []
    after(run, "evaluate", 0, 75, job())
    assert slurm.requeued == ["100_7"]


def test_nothing_comes_back_while_the_run_is_to_stop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = _Slurm(monkeypatch)
    (run.paths.root / "STOP").touch()
    after(run, "evaluate", 0, 75, job())
    assert (slurm.requeued, slurm.released) == ([], [("evaluate", 0)])


@pytest.mark.parametrize("status", [2, 3])
def test_failed_or_blocked_it_releases_those_who_wait(run: Run, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    slurm = _Slurm(monkeypatch)
    after(run, "export", 0, status, job())
    assert (slurm.requeued, slurm.released) == ([], [("export", 0)])


def test_lost_ranks_come_back_but_not_for_ever(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = _Slurm(monkeypatch)
    for _ in range(3):
        file = run.paths.attempts("train", 0)
        end_attempt(file, begin_attempt(file, job()), "failed", 76, "rank 3 is gone")
        after(run, "train", 0, 2, job())
    assert len(slurm.requeued) == 2
    assert slurm.released == [("train", 0)]


def test_a_controller_that_restarts_is_waited_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = _Slurm(monkeypatch)
    monkeypatch.setattr(after_module, "PAUSE_SECONDS", 0)
    asked: list[str] = []

    def away_at_first(name: str) -> Told:
        asked.append(name)
        if len(asked) < 3:
            raise UserError("scontrol: Unable to contact slurm controller")
        return Told("RUNNING", "None", 0)

    monkeypatch.setattr(commands, "told", away_at_first)
    after(run, "train", 0, 75, job())
    assert (len(asked), slurm.requeued, slurm.released) == (3, ["100_7"], [])


def test_a_slurm_that_does_not_answer_is_a_warning(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _Slurm(monkeypatch)

    def away(run: Run, ended: tuple[str, int]) -> None:
        raise UserError("squeue did not answer")

    monkeypatch.setattr(after_module, "release", away)
    after(run, "export", 0, 2, job())
    assert "warning: squeue did not answer" in capsys.readouterr().out


def test_what_vanished_says_what_slurm_knows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three attempts without an end; a job of another run has the same number since."""
    for stage, number in (("download", 2), ("verify", 3), ("train", 0)):
        begin_attempt(run.paths.attempts(stage, number), {"id": "1", "array_id": "70", "array_index": str(number)})
    title = jobs.title(run.paths, "download")
    asked: list[list[str]] = []

    def of_slurm(names: list[str]) -> list[Ended]:
        asked.append(names)
        return [
            Ended("70_1", "COMPLETED", title),
            Ended("70_2", "OUT_OF_MEMORY", title),
            Ended("70_3", "TIMEOUT", jobs.title(run.paths, "export")),
        ]

    monkeypatch.setattr(commands, "ended", of_slurm)
    state = explained(run.paths, run_state(run))
    reasons = {stage.name: [e.reason for e in stage.not_done if e.vanished] for stage in state.stages}
    assert asked == [["70"]]
    assert reasons["download"][0].startswith("vanished: SLURM says OUT_OF_MEMORY, it needs more memory")
    assert reasons["verify"] == reasons["train"] == [VANISHED]
    assert state.to_json()["stages"]["download"]["failed"] == 1


def test_how_jobs_ended_as_slurm_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM 22.05: nothing is quoted; an element requeued, one cancelled, what the accounts have yet to hear of."""
    answers = {
        "squeue": "10_3|FAILED|a|b\n10_0|PENDING|a|b\n12|TIMEOUT|c\n",
        "sacct": "10_3|FAILED|a|b\n10_1|CANCELLED by 1000|a|b\n10_0|REQUEUED|a|b\n10_[4-5%1]|PENDING|a|b\n"
        "11|FAILED|allocation\n12|RUNNING|c\n",
    }
    monkeypatch.setattr(commands, "_run", lambda command, status: answers[command[0]])
    monkeypatch.setattr(commands.shutil, "which", lambda tool: tool)
    words = {(end.name, end.title): end.state for end in commands.ended(["10", "11", "12"])}
    assert words == {
        ("10_1", "a|b"): "CANCELLED by 1000",
        ("10_3", "a|b"): "FAILED",
        ("11", "allocation"): "FAILED",  # as sacct names what has just begun
        ("12", "c"): "TIMEOUT",
    }


def test_nothing_vanished_nothing_is_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "ended", lambda names: pytest.fail("SLURM was asked"))
    assert explained(run.paths, run_state(run)).to_json() == run_state(run).to_json()
