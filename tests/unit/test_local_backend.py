"""The local backend: a failed element lets the others of its stage finish and ends the run there; it can go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from chain_support import attempts_of, fake_run, fake_stages, worker_command

from pipeline.errors import UserError
from pipeline.launch.attempts import read_attempts
from pipeline.launch.local import RunStopped, bring_to_done
from pipeline.launch.run import Run
from pipeline.locks import exclusive


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.launch.local.worker_command", worker_command)
    monkeypatch.setattr("pipeline.launch.run.build_stages", fake_stages)


def all_attempts(run: Run) -> dict[str, list[str]]:
    return {
        f"{stage.name}.{i}": [event for _, event in attempts_of(run, stage.name, i) if event != "begin"]
        for stage in run.stages
        for i in range(stage.elements)
    }


def test_a_failed_element_ends_the_run_after_its_stage_and_retry_does_what_is_missing(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    (tmp_path / "fail.check.1").write_text("no ink")
    with pytest.raises(UserError) as raised:
        bring_to_done(run.paths, jobs=2)
    message = str(raised.value)
    assert "stage check: 1 of 4 elements failed, and nothing after it was begun" in message
    assert "element 1: exit status 2" in message
    assert "error: check 1 is broken: no ink" in message
    assert f"neuclip retry {tmp_path}" in message
    done = ["done"]
    expected = {f"make.{i}": done for i in range(4)} | {f"check.{i}": done for i in (0, 2, 3)}
    assert all_attempts(run) == {**expected, "check.1": ["failed"], "join.0": []}
    (tmp_path / "fail.check.1").unlink()
    assert bring_to_done(run.paths, jobs=2)[1]
    assert all_attempts(run) == {**expected, "check.1": ["failed", "done"], "join.0": done}
    assert (tmp_path / "joined").read_text() == "".join(f"item {i}\n" for i in range(4))
    assert not bring_to_done(run.paths, jobs=2)[1]


def test_only_what_depends_on_a_changed_element_is_done_again(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    bring_to_done(run.paths, jobs=4)
    (tmp_path / "made.2").unlink()
    bring_to_done(run.paths, jobs=4)
    again = {name for name, ended in all_attempts(run).items() if len(ended) > 1}
    assert again == {"make.2"}, "the same came out, so nothing after it is stale"
    (tmp_path / "checked.3").write_text("altered")
    run.paths.marker("make", 3).unlink()
    bring_to_done(run.paths, jobs=4)
    assert {name for name, ended in all_attempts(run).items() if len(ended) > 1} == {"make.2", "make.3", "check.3"}


def test_started_twice_the_second_touches_nothing_and_says_who_is_at_work(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    with exclusive(tmp_path / ".lock", "it"), pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        bring_to_done(run.paths, jobs=2)
    assert not any(all_attempts(run).values())
    assert not (tmp_path / "environment.json").exists()


def in_the_middle(ready: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    def watch() -> None:
        deadline = time.monotonic() + 30
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_stop_file_lets_what_runs_finish_and_begins_nothing(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    for element in (0, 1):
        (tmp_path / f"hold.make.{element}").touch()

    def stop() -> None:
        (tmp_path / "STOP").touch()
        (tmp_path / "hold.make.0").unlink()
        in_the_middle(run.paths.marker("make", 0).exists, lambda: time.sleep(0.5)).join()
        (tmp_path / "hold.make.1").unlink()

    both = [tmp_path / f"begun.make.{element}" for element in (0, 1)]
    thread = in_the_middle(lambda: all(map(Path.exists, both)), stop)
    with pytest.raises(RunStopped, match=f"rm {tmp_path}/STOP\n  neuclip retry {tmp_path}") as raised:
        bring_to_done(run.paths, jobs=2)
    thread.join()
    assert raised.value.exit_status == 75
    assert not (tmp_path / "begun.make.2").exists()
    before = all_attempts(run)
    assert (before["make.0"], before["make.1"], before["make.2"]) == (["done"], ["done"], [])
    with pytest.raises(RunStopped):
        bring_to_done(run.paths, jobs=2)
    assert all_attempts(run) == before
    (tmp_path / "STOP").unlink()
    bring_to_done(run.paths, jobs=2)
    assert (tmp_path / "joined").exists()


def test_a_command_that_stops_is_stopped_and_not_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As training does, when somebody signals its worker alone."""
    run = fake_run(tmp_path)
    (tmp_path / "save.TERM").touch()
    (tmp_path / "hold.join.0").touch()
    worker = run.paths.attempts("join", 0)

    def signal_worker() -> None:
        os.kill(read_attempts(worker)[-1].pid, signal.SIGTERM)

    thread = in_the_middle((tmp_path / "begun.join.0").exists, signal_worker)
    with pytest.raises(RunStopped, match="stage join stopped:\n  element 0: stopped by SIGTERM"):
        bring_to_done(run.paths, jobs=4)
    thread.join()
    assert attempts_of(run, "join", 0) == [(1, "begin"), (1, "stopped")]
    assert "join: stopped in" in str(capsys.readouterr())


def test_a_signal_to_the_run_stops_its_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fake_run(tmp_path)
    (tmp_path / "save.TERM").touch()
    for element in range(4):
        (tmp_path / f"hold.make.{element}").touch()
    both = [tmp_path / f"begun.make.{element}" for element in (0, 1)]
    thread = in_the_middle(lambda: all(map(Path.exists, both)), lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(UserError, match="stopped by SIGINT; the same command goes on from here"):
        bring_to_done(run.paths, jobs=2)
    thread.join()
    assert all_attempts(run) | {"make.0": 0, "make.1": 0} == all_attempts(fake_run(tmp_path / "new")) | {
        "make.0": 0,
        "make.1": 0,
    }
    assert [attempts_of(run, "make", element)[-1] for element in (0, 1)] == [(1, "stopped")] * 2
    assert "make: stopped in" in str(capsys.readouterr())


def test_from_and_only(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    with pytest.raises(UserError, match="stage check: 4 of 4 elements failed"):
        bring_to_done(run.paths, jobs=4, only="check")
    assert "needs stage make, element 0, which is not done" in run.paths.attempts("check", 0).read_text()
    bring_to_done(run.paths, jobs=4, only="make")
    assert not (tmp_path / "checked.0").exists()
    bring_to_done(run.paths, jobs=4, first="check")
    assert (tmp_path / "joined").exists()
    with pytest.raises(UserError, match=r"no stage 'chek' in .*: it has make, check, join"):
        bring_to_done(run.paths, jobs=4, only="chek")
    with pytest.raises(UserError, match="exclude each other"):
        bring_to_done(run.paths, jobs=4, only="make", first="check")
