"""The world is read from the launchers' variables, mistakes in them are explained, and workers die with their
launcher."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from pipeline import distributed
from pipeline.errors import UserError
from tests.distributed.launch import free_port, run_ranks

GOOD = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def environment(monkeypatch):
    for name in (*distributed.VARIABLES, distributed.LAUNCHER_PID):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


def test_without_variables_there_is_one_process_and_no_group(environment):
    world = distributed.init()
    assert world == distributed.World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    assert not torch.distributed.is_initialized()
    distributed.shutdown()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MASTER_ADDR": "", "LOCAL_RANK": ""}, "lacks LOCAL_RANK, MASTER_ADDR: start the command"),
        ({"RANK": "one"}, "RANK should be a number, not 'one'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT should be a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not among the ranks 0 to 1"),
    ],
)
def test_mistakes_in_the_environment_are_explained(environment, change, message):
    environment({**GOOD, **change})
    with pytest.raises(UserError, match=message):
        distributed.init()


def test_ranks_that_do_not_come_are_named(environment, monkeypatch):
    # This process belongs to the test runner.
    monkeypatch.setattr(distributed, "die_with_parent", lambda parent: None)
    environment({**GOOD, "WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": free_port()})
    with pytest.raises(UserError, match=r"rank 1 of 2 could not join the others at 127.0.0.1:\d+: "):
        distributed.init(timeout_seconds=1)


def describe():
    world = distributed.init()  # again: the launch helper has done it once
    return world, distributed.rank(), distributed.world_size(), torch.distributed.get_backend()


def test_ranks_know_their_world():
    for number, (world, rank, size, backend) in enumerate(run_ranks(2, describe)):
        assert world == distributed.World(number, number, 2, torch.device("cpu"))
        assert (rank, size, backend) == (number, 2, "gloo")


def gone(pid, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as stream:
                if (
                    stream.read().rsplit(")", 1)[1].split()[0] == "Z"
                ):  # dead, not yet reaped by its new parent
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def fork_family(child):
    """A parent and its child, forked; `child()` runs in the latter. Returns (parent, child) pids."""
    readable, writable = os.pipe()
    parent = os.fork()
    if parent == 0:
        if os.fork() == 0:
            child(writable)
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
        os._exit(0)
    return parent, int(os.read(readable, 20))


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_worker_dies_with_its_parent():
    def child(pipe):
        distributed._die_with_launcher()
        os.write(pipe, str(os.getpid()).encode())

    parent, worker = fork_family(child)
    assert not gone(worker, seconds=0.2)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert gone(worker)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_worker_whose_parent_was_dead_before_stops(tmp_path):
    def child(pipe):
        os.environ[distributed.LAUNCHER_PID] = str(os.getppid())
        os.write(pipe, str(os.getpid()).encode())
        while os.getppid() == int(os.environ[distributed.LAUNCHER_PID]):
            time.sleep(0.01)
        distributed._die_with_launcher()
        (tmp_path / "lived on").touch()

    parent, worker = fork_family(child)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert gone(worker)
    assert not (tmp_path / "lived on").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_workers_of_a_killed_torchrun_do_not_live_on(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(
        textwrap.dedent(
            f"""
            import os, pathlib, time
            from pipeline.distributed import init
            world = init(timeout_seconds=120)
            path = pathlib.Path({str(tmp_path)!r}, f"{{world.rank}}.tmp")
            path.write_text(str(os.getpid()))
            path.rename(path.with_suffix(".pid"))
            time.sleep(300)
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-addr=127.0.0.1", f"--master-port={free_port()}", str(worker)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
            assert launcher.poll() is None, "torchrun ended before its workers were up"
            time.sleep(0.1)
        workers = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
        assert len(workers) == 2
        assert not any(gone(pid, seconds=0.1) for pid in workers)
    finally:
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    assert all(gone(pid) for pid in workers)
