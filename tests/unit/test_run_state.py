"""A run's state from its files: every state, what a backend adds, and how few files are read."""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chain_support import fake_run
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.cli import main
from pipeline.config.loader import load_recipe
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.launch.attempts import Status, begin_attempt, end_attempt
from pipeline.launch.logs import choose, show_log
from pipeline.launch.markers import todo
from pipeline.launch.paths import RunPaths
from pipeline.launch.run import Run
from pipeline.launch.stages import Stage, needed
from pipeline.launch.state import VANISHED, JobState, run_state
from pipeline.launch.status import print_status, what_next
from pipeline.launch.sweep import sweep_members
from pipeline.locks import exclusive

opened: Counter[str] | None = None
hooked = False


@contextmanager
def files_opened() -> Iterator[Counter[str]]:
    """Names of files of stages/ that are opened inside the block."""
    global opened, hooked
    if not hooked:
        sys.addaudithook(_note)
        hooked = True
    opened = Counter()
    try:
        yield opened
    finally:
        opened = None


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and opened is not None and "/stages/" in str(arguments[0]):
        opened[os.path.basename(str(arguments[0]))] += 1


def mark(run: Run, stage: str, element: int, seconds: float = 10) -> None:
    write_json(run.paths.marker(stage, element), {"fingerprint": "", "outputs": {}, "seconds": seconds})


def attempt(run: Run, stage: str, element: int, status: Status | None, reason: str = "") -> None:
    file = run.paths.attempts(stage, element)
    begun = begin_attempt(file, None)
    if status is not None:
        end_attempt(file, begun, status, 1, reason)


def run_of_every_state(root: Path) -> Run:
    run = fake_run(root)
    mark(run, "make", 0)
    attempt(run, "make", 1, "failed", "error: no ink")
    attempt(run, "make", 2, "stopped", "stopped by SIGTERM")
    attempt(run, "make", 3, None)
    attempt(run, "check", 1, "blocked", "needs stage make, element 1")
    attempt(run, "check", 0, "blocked", "needs stage make, element 0")
    return run


def states(run: Run, stage: str, jobs: dict[tuple[str, int], JobState] | None = None) -> dict[int, str]:
    found = next(s for s in run_state(run, jobs).stages if s.name == stage)
    return {element.element: element.state for element in found.not_done}


def test_every_state(tmp_path: Path) -> None:
    run = run_of_every_state(tmp_path)
    assert states(run, "make") == {1: "failed", 2: "stopped", 3: "failed"}
    assert run_state(run).stages[0].not_done[2].reason == VANISHED
    assert states(run, "check") == {0: "waiting", 1: "blocked", 2: "waiting", 3: "waiting"}, "0 is free to go by now"
    with exclusive(run.paths.lock("make", 3), "it"):
        assert states(run, "make")[3] == "running"
    jobs = {("make", 3): JobState("queued", "12_3", reason="Resources"), ("make", 1): JobState("running", "12_1", "n7")}
    assert states(run, "make", jobs) == {1: "running", 2: "stopped", 3: "queued"}
    assert run_state(run, jobs).stages[0].not_done[0].nodes == "n7"


def test_json_counts_every_element_once(tmp_path: Path) -> None:
    run = run_of_every_state(tmp_path)
    (tmp_path / "STOP").touch()
    told = run_state(run).to_json()
    assert told["stop"] is True
    assert told["done"] is False
    make = told["stages"]["make"]
    assert {key: make[key] for key in ("done", "failed", "running", "waiting", "stopped", "total")} == {
        "done": 1, "failed": 2, "running": 0, "waiting": 0, "stopped": 1, "total": 4,
    }  # fmt: skip
    assert make["failures"]["1"] == "error: no ink"
    names = ("done", "running", "queued", "failed", "stopped", "blocked", "waiting")
    for stage in told["stages"].values():
        assert sum(stage[name] for name in names) == stage["total"]


def test_expected_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake_run(tmp_path)
    mark(run, "make", 0, seconds=10)
    mark(run, "make", 1, seconds=30)
    assert run_state(run).stages[0].seconds_left is None, "nothing runs"
    attempt(run, "make", 2, None)
    begun = json.loads(run.paths.attempts("make", 2).read_text())["time"]
    monkeypatch.setattr("time.time", lambda: begun + 5)
    with exclusive(run.paths.lock("make", 2), "it"):
        assert run_state(run).stages[0].seconds_left == pytest.approx(15 + 20)


def test_expected_end_of_trainings_is_by_their_own_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of four over two objectives: one is done, two run, of which one has not logged, one waits."""
    config = load_recipe("demo", ("train.samples=12800", "train.epochs=null"))
    members = sweep_members(["objective=neuclip,fastclip", "seed=0,1"])
    run = Run.planned(RunPaths(tmp_path.resolve(), config, members))
    begun = {}
    for number in (1, 2):
        attempt(run, "train", number, None)
        begun[number] = json.loads(run.paths.attempts("train", number).read_text().splitlines()[0])["time"]
    log = run.paths.member(1).train / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    lines = [
        {"step": n, "samples_seen": 128 * n, "time": begun[1] + n, "metrics": {"train/samples_per_second": 128.0}}
        for n in range(1, 11)
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr("time.time", lambda: begun[1] + 12)

    def left() -> float | None:
        with exclusive(run.paths.lock("train", 1), "it"), exclusive(run.paths.lock("train", 2), "it"):
            return next(stage for stage in run_state(run).stages if stage.name == "train").seconds_left

    assert left() is None, "nobody knows of 2"
    mark(run, "train", 0, seconds=200)
    rest = 200 - (begun[1] + 12 - begun[2])
    assert left() == pytest.approx((88 + rest + 200) / 2), "1 has 11,520 samples to see, and logged 2 s ago"
    mark(run, "train", 3, seconds=200)
    assert left() == pytest.approx(rest), "not the mean: 2 takes longest"


def big_run(root: Path, elements: int) -> Run:
    run = fake_run(root)

    def stage(name: str, needs: tuple[str, ...]) -> Stage:
        return Stage(name, needs, lambda p, i: [], lambda p, i: [p.root / "stages" / f"{name}.{i}.proof"], elements)

    run.paths.stages.mkdir(parents=True)
    for element in range(elements):
        for name in ("download", "verify"):
            (run.paths.stages / f"{name}.{element}.json").write_text('{"fingerprint": "", "outputs": {}, "seconds": 1}')
    return Run(run.paths, (stage("download", ()), stage("verify", ("download",))))


def test_ten_thousand_done_elements_cost_no_reading(tmp_path: Path) -> None:
    run = big_run(tmp_path, 10_000)
    for element in (17, 4000):
        run.paths.marker("verify", element).unlink()
        attempt(run, "verify", element, "failed", "error: torn")
    with files_opened() as names:
        state = run_state(run)
    assert [stage.count("done") for stage in state.stages] == [10_000, 9_998]
    assert state.stages[1].count("failed") == 2
    assert names.total() <= 2 + 2 * 32
    assert not any("proof" in name for name in names)


def test_what_is_to_do_is_found_in_time_proportional_to_the_elements(tmp_path: Path) -> None:
    run = big_run(tmp_path, 100)
    with files_opened() as names:
        assert todo(run, run.stages[1]) == list(range(100)), "no marker of these has the right fingerprint"
    assert max(count for name, count in names.items() if name.startswith(("download", "verify"))) <= 2


@given(st.integers(1, 60), st.integers(1, 60))
def test_needed_elements_cover_the_need_in_order(elements: int, of_need: int) -> None:
    def stage(name: str, n: int) -> Stage:
        return Stage(name, (), lambda p, i: [], lambda p, i: [], elements=n)

    mine, need = stage("mine", elements), stage("need", of_need)
    shares = [needed(mine, i, need) for i in range(elements)]
    assert all(shares)
    assert {i for share in shares for i in share} == set(range(of_need))
    assert [share.start for share in shares] == sorted(share.start for share in shares)
    if elements == of_need:
        assert shares == [range(i, i + 1) for i in range(elements)]
    if of_need % elements == 0:
        assert sum(map(len, shares)) == of_need, "each in one share"


def screen(run: Run, monkeypatch: pytest.MonkeyPatch) -> str:
    stream = io.StringIO()
    monkeypatch.setattr("pipeline.launch.status.Console", lambda **options: Console(file=stream, width=160))
    print_status(run, run_state(run))
    return stream.getvalue()


def test_the_screen_tells_reasons_and_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of_every_state(tmp_path)
    said = screen(run, monkeypatch)
    assert "make 1: failed attempt 1 on" in said
    assert "error: no ink" in said
    assert f"neuclip logs {tmp_path} make 1" in said
    assert f"neuclip retry {tmp_path}" in said
    for stage in run.stages:
        for element in range(stage.elements):
            mark(run, stage.name, element)
    assert what_next(run, run_state(run)) == [f"All done: {tmp_path}/report.html"]


def test_status_of_no_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["status", str(tmp_path)])
    assert result.exit_code == 2
    assert "is no run directory" in result.output


def test_logs_of_what_failed_and_of_the_last_attempt(tmp_path: Path) -> None:
    run = run_of_every_state(tmp_path)
    with pytest.raises(UserError, match=r"no log in .* yet: nothing has begun"):
        choose(run, run_state(run), None, None)
    run.paths.log("make", 0).parent.mkdir()
    run.paths.log("make", 0).write_text("$ make 0\nfine\n")
    assert choose(run, run_state(run), None, None) == ("make", 0)
    run.paths.log("make", 1).write_text("$ make 1\nfirst\n$ make 1\nsecond\n")
    assert choose(run, run_state(run), None, None) == ("make", 1)
    assert choose(run, run_state(run), "make", 3) == ("make", 3)
    said: list[str] = []
    show_log(run, "make", 1, follow=True, say=said.append)
    assert "".join(said) == "$ make 1\nsecond\n(make 1: failed)\n"
    with pytest.raises(UserError, match=f"no log of stage make, element 3 in {tmp_path}: vanished"):
        show_log(run, "make", 3, follow=False, say=said.append)
    with pytest.raises(UserError, match="numbered from 0: there is no 4"):
        choose(run, run_state(run), "make", 4)
