"""One element of one stage, as every backend has it done: real processes, signalled, killed, in each other's way."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from chain_support import attempts_of, fake_run, worker_command

from pipeline.errors import UserError
from pipeline.launch import work as work_module
from pipeline.launch.attempts import begin_attempt, end_attempt, read_attempts
from pipeline.launch.run import Run
from pipeline.launch.state import VANISHED, element_state
from pipeline.launch.work import EXIT_STATUS, work


def begin(run: Run, stage: str, element: int) -> subprocess.Popen[str]:
    command = worker_command(run, run.stage(stage), element)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def work_here(run: Run, stage: str, element: int) -> int:
    return work(run, run.stage(stage), element, "local", {"id": "7"})


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def held(run: Run, stage: str, element: int) -> subprocess.Popen[str]:
    """A worker in the middle of the element."""
    root = run.paths.root
    (root / f"hold.{stage}.{element}").touch()
    process = begin(run, stage, element)
    wait_for((root / f"begun.{stage}.{element}").exists)
    return process


def test_done_once_and_then_done_before(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = fake_run(tmp_path)
    assert work_here(run, "make", 1) == 0
    assert (tmp_path / "made.1").read_text() == "item 1\n"
    assert work_here(run, "make", 1) == 0
    assert "stage make, element 1: done before" in capfd.readouterr().out
    assert attempts_of(run, "make", 1) == [(1, "begin"), (1, "done")]
    attempt = read_attempts(run.paths.attempts("make", 1))[0]
    assert (attempt.pid, attempt.job, attempt.exit_status) == (os.getpid(), {"id": "7"}, 0)
    (tmp_path / "made.1").write_text("altered")
    assert work_here(run, "make", 1) == 0
    assert (tmp_path / "made.1").read_text() == "item 1\n"
    assert attempts_of(run, "make", 1)[2:] == [(2, "begin"), (2, "done")]


def test_a_failure_is_kept_with_its_reason(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    (tmp_path / "fail.make.2").write_text("no ink")
    assert work_here(run, "make", 2) == 2
    attempt = read_attempts(run.paths.attempts("make", 2))[-1]
    assert (attempt.status, attempt.exit_status) == ("failed", 2)
    assert "error: make 2 is broken: no ink" in attempt.reason
    assert not run.paths.marker("make", 2).exists()


def test_success_without_output_is_a_failure(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    (tmp_path / "nothing.make.0").touch()
    assert work_here(run, "make", 0) == 2
    assert "ended well but left no made.0" in read_attempts(run.paths.attempts("make", 0))[-1].reason


def test_an_element_that_failed_anew_is_not_done_any_more(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    assert work_here(run, "make", 0) == 0
    (tmp_path / "made.0").unlink()
    (tmp_path / "fail.make.0").touch()
    assert work_here(run, "make", 0) == 2
    assert element_state(run, run.stage("make"), 0).state == "failed"


def test_blocked_says_by_what_and_why(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    assert work_here(run, "check", 3) == 3
    assert "needs stage make, element 3, which is not done: it was not tried" in last_reason(run, "check", 3)
    (tmp_path / "fail.make.3").write_text("no ink")
    work_here(run, "make", 3)
    assert work_here(run, "check", 3) == 3
    assert "make 3 is broken: no ink" in last_reason(run, "check", 3)
    assert attempts_of(run, "check", 3)[-1] == (2, "blocked")
    assert work_here(run, "check", 0) == 3, "each element waits for its own"
    work_here(run, "make", 0)
    assert work_here(run, "check", 0) == 0


def last_reason(run: Run, stage: str, element: int) -> str:
    return read_attempts(run.paths.attempts(stage, element))[-1].reason


def test_stop_file(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    (tmp_path / "STOP").touch()
    assert work_here(run, "make", 0) == 75
    assert "STOP exists" in last_reason(run, "make", 0)
    assert not (tmp_path / "begun.make.0").exists()
    (tmp_path / "STOP").unlink()
    assert work_here(run, "make", 0) == 0


def test_no_such_element(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage make has 4 elements, numbered from 0: there is no 4"):
        work_here(fake_run(tmp_path), "make", 4)


def test_the_second_of_two_touches_nothing(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    first = held(run, "make", 0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(UserError, match=f"stage make, element 0 of .* is in use by process {first.pid}"):
        work(run, run.stage("make"), 0, "local", None)  # a job would wait for one that is about to end
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    (tmp_path / "hold.make.0").unlink()
    assert first.wait(timeout=30) == 0
    assert attempts_of(run, "make", 0) == [(1, "begin"), (1, "done")]


def test_kill_9_leaves_an_attempt_that_vanished(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    process = held(run, "make", 0)
    assert element_state(run, run.stage("make"), 0).state == "running"
    process.kill()
    process.wait()
    wait_for(lambda: not commands_on(tmp_path))
    state = element_state(run, run.stage("make"), 0)
    assert (state.state, state.reason) == ("failed", VANISHED)
    (tmp_path / "hold.make.0").unlink()
    assert work_here(run, "make", 0) == 0
    assert attempts_of(run, "make", 0) == [(1, "begin"), (2, "begin"), (2, "done")]


def commands_on(root: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except OSError:
            continue
        if str(root).encode() in line and entry.parent.name != str(os.getpid()):
            found.append(line.decode())
    return found


@pytest.mark.parametrize("name", ["USR1", "TERM"])
@pytest.mark.parametrize("how", ["save", "die", "ignore"])
def test_a_signal_is_passed_on_and_the_end_awaited(tmp_path: Path, name: str, how: str) -> None:
    run = fake_run(tmp_path)
    (tmp_path / f"{how}.{name}").touch()
    process = held(run, "make", 0)
    process.send_signal(signal.Signals[f"SIG{name}"])
    output, _ = process.communicate(timeout=30)
    attempt = read_attempts(run.paths.attempts("make", 0))[-1]
    assert not commands_on(tmp_path)
    if how == "ignore":
        assert (process.returncode, attempt.status) == (0, "done"), output
    else:
        assert (process.returncode, attempt.status) == (75, "stopped"), output
        assert f"stopped by SIG{name}" in attempt.reason
        assert attempt.exit_status == (75 if how == "save" else -signal.Signals[f"SIG{name}"])
        assert ("on request, and saved" in attempt.reason) == (how == "save")


@pytest.mark.parametrize(("told", "status"), [([], "failed"), ([signal.SIGTERM], "stopped")])
def test_what_a_scheduler_ends_along_with_it_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[signal.Signals], status: str
) -> None:
    """A job that is cancelled or preempted, whose image server ends before its command."""

    @contextmanager
    def ends(*of: object) -> Iterator[Callable[[], None]]:
        for number in told:
            os.kill(os.getpid(), number)
        raise UserError("the image server ended")
        yield

    monkeypatch.setattr(work_module, "image_server", ends)
    run = fake_run(tmp_path)
    exit_status = work(run, replace(run.stage("make"), served=True), 0, "srun", {"id": "7"})
    attempt = read_attempts(run.paths.attempts("make", 0))[-1]
    assert (exit_status, attempt.status) == (EXIT_STATUS[status], status)
    assert attempt.reason == ("stopped by SIGTERM: " if told else "") + "error: the image server ended"


def test_attempts_survive_a_torn_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    end_attempt(file, begin_attempt(file, None), "failed", 2, "x" * 10_000)
    with open(file, "a") as stream:
        stream.write('{"attempt": 2, "event": "be')
    second = begin_attempt(file, None)
    assert second.number == 2
    assert [(a.number, a.status) for a in read_attempts(file)] == [(1, "failed"), (2, None)]
    assert len(read_attempts(file)[0].reason) == 4000
    end_attempt(file, second, "done", 0, "")
    assert read_attempts(file)[1].status == "done"
