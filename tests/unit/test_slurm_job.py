"""Within a job: how commands and ranks are started, and what the job does when its element has ended."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from pipeline.config.cluster import Cluster
from pipeline.config.loader import load_recipe
from pipeline.errors import UserError
from pipeline.launch.attempts import begin_attempt, end_attempt
from pipeline.launch.plan import freeze
from pipeline.launch.run import Run
from pipeline.launch.settle import settle
from pipeline.launch.slurm import after as after_module
from pipeline.launch.slurm import commands
from pipeline.launch.slurm.after import after
from pipeline.launch.slurm.ranks import standard_variables
from pipeline.launch.slurm.srun import PORTS, free_port, launched

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


def test_a_port_that_is_taken_is_passed_over() -> None:
    first = free_port(4711)
    with socket.create_server(("", first)):
        assert free_port(4711) != first
    assert free_port(4711) == first != free_port(4712)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.planned(freeze(settle(load_recipe("demo", ("corpus.port=20001",)), tmp_path / "run")))
    (tmp_path / "run/slurm").mkdir()
    (tmp_path / "run/slurm/cluster.yaml").write_text("max_requeues: 2")
    return run


class _Slurm:
    """Notes what is asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state: str = "RUNNING") -> None:
        self.requeued: list[str] = []
        self.released: list[tuple[str, int]] = []
        monkeypatch.setattr(commands, "state", lambda name: state)
        monkeypatch.setattr(commands, "requeue", self.requeued.append)
        monkeypatch.setattr(after_module, "release", lambda run, ended: self.released.append(ended) or {})


def job(restarts: int = 0) -> dict[str, str]:
    return {"id": "101", "array_id": "100", "array_index": "7", "restarts": str(restarts)}


def test_a_stopped_element_requeues_itself_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = _Slurm(monkeypatch)
    after(run, "evaluate", 0, 75, job(restarts=1))
    assert (slurm.requeued, slurm.released) == (["100_7"], [])  # "100" would be the whole array


def test_only_so_often(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = _Slurm(monkeypatch)
    after(run, "evaluate", 0, 75, job(restarts=2))
    assert (slurm.requeued, slurm.released) == ([], [("evaluate", 0)])


def test_what_slurm_is_ending_is_left_to_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = _Slurm(monkeypatch, state="COMPLETING")
    after(run, "evaluate", 0, 75, job())
    assert (slurm.requeued, slurm.released) == ([], [])


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


def test_a_slurm_that_does_not_answer_is_a_warning(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _Slurm(monkeypatch)

    def away(run: Run, ended: tuple[str, int]) -> None:
        raise UserError("squeue did not answer")

    monkeypatch.setattr(after_module, "release", away)
    after(run, "export", 0, 2, job())
    assert "warning: squeue did not answer" in capsys.readouterr().out
