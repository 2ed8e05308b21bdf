"""A child dies with its parent, also when the parent was faster."""

import os
import signal
import sys
import time

import pytest

from pipeline.processes import die_with_parent, follow_parent


def gone(pid, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as stream:
                if stream.read().rsplit(")", 1)[1].split()[0] == "Z":  # dead, not yet reaped by its new parent
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
        die_with_parent(os.getppid())
        os.write(pipe, str(os.getpid()).encode())

    parent, worker = fork_family(child)
    assert not gone(worker, seconds=0.2)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert gone(worker)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_worker_whose_parent_was_dead_before_stops(tmp_path):
    def child(pipe):
        parent = os.getppid()
        os.write(pipe, str(os.getpid()).encode())
        while os.getppid() == parent:
            time.sleep(0.01)
        die_with_parent(parent)
        (tmp_path / "lived on").touch()

    parent, worker = fork_family(child)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert gone(worker)
    assert not (tmp_path / "lived on").exists()


def test_a_helper_leaves_signals_and_the_cpu_to_its_parent():
    def child(pipe):
        before = os.nice(0)
        follow_parent(niceness=3)
        os.write(pipe, str(os.getpid() if os.nice(0) == before + 3 else 0).encode())

    parent, helper = fork_family(child)
    assert helper
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        os.kill(helper, number)
    assert not gone(helper, seconds=0.2)
    for process in (parent, helper):
        os.kill(process, signal.SIGKILL)
    os.waitpid(parent, 0)
