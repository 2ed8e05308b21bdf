"""Which checkpoints are evaluated during training, which are held for it, what is logged and what is forgotten."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evaluation_support import write_suite

from pipeline.config.loader import load_recipe
from pipeline.engine.tags import tag_of
from pipeline.errors import UserError
from pipeline.evaluation import during_training
from pipeline.evaluation.during_training import Evaluations
from pipeline.launch.paths import RunPaths
from pipeline.launch.stages import build_stages
from pipeline.tracking.jsonl import JsonlTracker, read_points

# Evaluates as the file beside the checkpoints says; a score is a hundredth of the step.
EVALUATE = """
import json, pathlib, sys, time
request = json.loads(sys.argv[2])
out, checkpoint = pathlib.Path(request["out"]), pathlib.Path(request["checkpoint"])
(out / "model").mkdir()
while (checkpoint.parent / "wait").exists(): time.sleep(0.01)
names = "title kind main_metric model checkpoint_sha256 model_config_sha256 precision task_hash data_fingerprint"
result = {**dict.fromkeys(names.split(), ""), "n": 1, "chance": 0.1, "metrics": {}}
for task in request["tasks"][: int(checkpoint.name[-1] != "9") + 1]:
    (out / f"{task}.json").write_text(json.dumps({**result, "task": task, "score": int(checkpoint.name[5:]) / 100}))
"""


class Run:
    """A training run of a batch of 10 and an epoch of 100 that is evaluated every third step."""

    def __init__(self, folder: Path, **during: Any) -> None:
        settings = {"every": "3 steps", "tasks": ["colours", "captions"], **during}
        changes = ["train.global_batch_size=10", "train.log_every_steps=1", f"evaluate_during={json.dumps(settings)}"]
        self.checkpoints, self.spool = folder / "checkpoints", folder / "metrics.jsonl"
        self.keeper = SimpleNamespace(held=frozenset(), remove_superseded=lambda: None)
        keeper: Any = self.keeper
        self.evaluations = Evaluations(load_recipe("demo", changes), folder, keeper, 100, 0)
        self.tracker: JsonlTracker | None = None

    def live(self, begin: int) -> Run:
        self.tracker = JsonlTracker(self.spool, begin)
        self.evaluations.recall(self.spool, begin)
        return self

    def step(self, step: int) -> frozenset[str]:
        """Pass a step, with a checkpoint where it is due; returns the tags that are held then."""
        if step % 3 == 0:
            self.save(step)
        trainer: Any = SimpleNamespace(progress=SimpleNamespace(step=step), tracker=self.tracker)
        self.evaluations.after_step(trainer, None, None)  # type: ignore[arg-type]
        return self.keeper.held

    def save(self, step: int) -> None:
        (self.checkpoints / tag_of(step)).mkdir(parents=True, exist_ok=True)
        (self.checkpoints / tag_of(step) / "COMPLETE").touch()

    def finish(self, moving: Callable[[], bool] = lambda: True) -> None:
        assert self.tracker is not None
        self.evaluations.finish(self.tracker, moving)
        self.evaluations.close()

    def logged(self) -> list[tuple[int, int, dict[str, float]]]:
        return [(point.step, point.samples_seen, point.metrics) for point in read_points(self.spool)]


def both(step: int) -> dict[str, float]:
    return {"eval/colours": step / 100, "eval/captions": step / 100}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaldata")
    write_suite(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    monkeypatch.setattr(during_training, "COMMAND", (sys.executable, "-c", EVALUATE))
    (tmp_path / "checkpoints").mkdir()
    return lambda **during: Run(tmp_path, **{"data": str(data), **during})


def test_one_runs_the_newest_waits_and_what_waited_before_is_left_out(
    run: Callable[..., Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    life = run().live(0)
    (tmp_path / "checkpoints/wait").touch()
    held = [sorted(life.step(step)) for step in range(1, 13)]
    assert held[1] == []
    assert held[2] == held[4] == [tag_of(3)]
    assert held[5] == held[7] == [tag_of(3), tag_of(6)]
    assert held[11] == [tag_of(3), tag_of(12)]
    (tmp_path / "checkpoints/wait").unlink()
    life.finish()
    assert life.logged() == [(3, 30, both(3)), (12, 120, both(12))]
    assert [record.getMessage()[:8] for record in caplog.records] == ["step 6 i", "step 9 i"]
    assert life.keeper.held == frozenset()
    assert not list((tmp_path / "evaluations").glob("*/model"))


def test_a_checkpoint_is_held_before_it_is_complete_and_read_only_then(run: Callable[..., Run]) -> None:
    life = run().live(0)
    trainer: Any = SimpleNamespace(progress=SimpleNamespace(step=3), tracker=life.tracker)
    life.evaluations.after_step(trainer, None, None)  # type: ignore[arg-type]
    assert life.keeper.held == {tag_of(3)}
    assert not list((life.checkpoints.parent / "evaluations").glob("*"))
    life.finish()  # a save that failed: there is nothing to wait for
    assert life.logged() == []


def test_the_next_life_evaluates_the_newest_that_has_no_scores(run: Callable[..., Run], tmp_path: Path) -> None:
    life = run().live(0)
    (tmp_path / "checkpoints/wait").touch()
    for step in range(1, 8):
        life.step(step)
    life.finish(moving=lambda: False)  # stopped: the one that runs is ended
    (tmp_path / "checkpoints/wait").unlink()
    assert life.logged() == []
    life = run().live(7)
    assert life.keeper.held == {tag_of(6)}
    life.finish()
    assert life.logged() == [(6, 60, both(6))]
    life = run().live(7)
    assert life.keeper.held == frozenset()
    life.finish()
    assert len(life.logged()) == 1


def test_what_is_trained_again_is_evaluated_again(run: Callable[..., Run], tmp_path: Path) -> None:
    life = run().live(0)
    for step in range(1, 4):
        life.step(step)
    life.finish()
    life = run().live(2)  # the checkpoint of step 3 was damaged
    assert life.logged() == []
    assert not list((tmp_path / "evaluations").iterdir())
    life.step(3)
    life.finish()
    assert life.logged() == [(3, 30, both(3))]


def test_scores_that_are_there_are_logged_and_the_others_named(
    run: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    life = run().live(8)
    life.step(9)
    life.finish()
    assert life.logged() == [(9, 90, {"eval/colours": 0.09})]
    assert "the evaluation of step 9 ended with 0; training goes on without scores of captions" in caplog.text


def test_waiting_at_the_end_has_a_limit(
    run: Callable[..., Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    life = run(wait_minutes=0).live(2)
    (tmp_path / "checkpoints/wait").touch()
    life.step(3)
    started = time.monotonic()
    life.finish()
    assert time.monotonic() - started < during_training.END_SECONDS
    assert "step 3 is left out of evaluation: evaluate_during.wait_minutes are over" in caplog.text


def test_a_tracker_that_fails_ends_evaluating_and_nothing_else(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    life = run().live(2)
    monkeypatch.setattr(during_training, "read_result", lambda *_: 1 / 0)
    life.step(3)
    life.finish()
    assert caplog.text.count("nothing more is evaluated during training: ZeroDivisionError") == 1
    assert life.keeper.held == frozenset()


@pytest.mark.parametrize(
    ("during", "message"),
    [
        ({"data": None}, "evaluate_during.data is missing"),
        ({"tasks": ["colors"]}, "no task 'colors'"),
        ({"data": "/nowhere"}, "no tasks.yaml in /nowhere"),
    ],
)
def test_what_is_not_there_is_refused_at_the_start(run: Callable[..., Run], during: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(**during)


def test_the_chain_evaluates_on_the_tasks_that_it_has(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path, load_recipe("demo", ["evaluate_during.every=50 steps"]))
    (train,) = (stage for stage in build_stages(paths) if stage.name == "train")
    assert f'evaluate_during.data="{paths.evaldata}"' in train.command(paths, 0)
    paths = RunPaths(tmp_path, load_recipe("demo", ["evaluate_during={every: 50 steps, data: mine}"]))
    assert not any(word.startswith("evaluate_during") for word in train.command(paths, 0))


def test_the_process_does_not_outlive_its_trainer(tmp_path: Path) -> None:
    nobody = 2**22  # more than a process id can be
    ended = subprocess.run([*during_training.COMMAND, str(nobody), "{}"], stderr=subprocess.DEVNULL)
    assert ended.returncode == -signal.SIGKILL
