"""One frame of `neuclip watch`, the spool as it grows, and a real process that ends when the run ends."""

import io
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from rich.console import Console

from pipeline.cli import main
from pipeline.files import read_json, write_json
from pipeline.report.compare.run import Run
from pipeline.report.watch import Spool, frame
from pipeline.tracking.jsonl import JsonlTracker, read_points
from tests.compare_support import fabricate_member
from tests.report_support import HOSTILE, HUGE


def drawn(folder, width=120, now=None, height=None):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    run = Run(folder, folder.name, read_points(folder / "train" / "metrics.jsonl"))
    console.print(frame(run, width, time.time() if now is None else now, height))
    return console.file.getvalue()


@pytest.fixture
def running(tmp_path):
    """Half way through 400 steps, its last point 10 s old at 1.7e9 + 210."""
    folder = fabricate_member(tmp_path / "birds", steps=400)
    points = [point for point in read_points(folder / "train" / "metrics.jsonl") if point.step <= 200]
    (folder / "train" / "metrics.jsonl").unlink()
    tracker = JsonlTracker(folder / "train" / "metrics.jsonl")
    for point in points:
        tracker.log(point.metrics, point.step, point.samples_seen)
    tracker.close("finished")
    (folder / "train" / "summary.json").unlink()
    (folder / "results" / "aggregate.json").unlink()
    write_json(folder / "train" / "heartbeats" / "00000.json", {"rank": 0, "failed": ""})
    return folder


def test_a_frame_tells_progress_rate_expected_end_and_draws_the_curves(running):
    last = read_points(running / "train" / "metrics.jsonl")[-1]
    shown = drawn(running, now=last.time + 2)
    assert "birds  neuclip on demo  training" in shown
    assert "50.0%" in shown
    assert "12.8k of 25.6k samples  400 samples/s  30 s left" in shown, "12,800 left at 400 a second, 2 s ago"
    assert "32 s of training  0.0711 GPU-hours" in shown
    assert f"step 200  loss {last.metrics['train/loss']:.4g}" in shown
    for title in ("loss", "log-normalizer error", "tau", "samples/s"):
        assert title in shown
    assert any("\u2801" <= character <= "\u28ff" for character in shown), "braille"


def test_curves_are_as_many_as_fit(running):
    assert drawn(running, width=80).count("┌") == 4
    assert drawn(running, width=80, height=24).count("┌") == 2
    assert drawn(running, width=120, height=24).count("┌") == 4
    assert len(drawn(running, width=80, height=24).splitlines()) <= 24


def test_messages_are_those_of_the_log_and_what_ended_it(running):
    (running / "logs").mkdir()
    log = "step 10 loss 3\nWARNING pipeline.health.monitor: step 40: tau is at its bound\nINFO x: y\n" + HUGE
    (running / "logs" / "train.0.log").write_text(log)
    beat = running / "train" / "heartbeats" / "00000.json"
    write_json(beat, {"rank": 0, "failed": "out of memory\x1b[31m " + HOSTILE})
    shown = drawn(running)
    assert "step 40: tau is at its bound" in shown
    assert "failed: out of memory [31m </script>" in shown
    assert "INFO" not in shown
    assert "\x1b" not in shown


def test_warnings_are_counted_where_their_log_is_elsewhere(running):
    tracker = JsonlTracker(running / "train" / "metrics.jsonl", start_step=200)
    tracker.log({"health/warnings": 2.0, "train/loss": 1.0}, 202, 12_928)
    assert "2 health warnings, the last by step 202" in drawn(running)


def test_a_run_that_has_not_logged_yet_says_so(tmp_path):
    folder = fabricate_member(tmp_path / "young")
    for file in ("train/metrics.jsonl", "train/summary.json", "results/aggregate.json"):
        (folder / file).unlink()
    shown = drawn(folder)
    assert "not trained" in shown
    assert "Training has not logged anything yet." in shown


def test_nonsense_in_the_log_is_not_drawn(tmp_path):
    folder = fabricate_member(tmp_path / "nan")
    (folder / "train" / "metrics.jsonl").unlink()
    tracker = JsonlTracker(folder / "train" / "metrics.jsonl")
    for step, value in enumerate((float("nan"), float("inf"), 3.0, 3.0), start=1):
        tracker.log({"train/loss": value, "train/samples_per_second": 0.0}, step, 64 * step)
    assert drawn(folder).count("┌") == 2, "a loss and a rate that do not change are still curves"


def test_the_spool_is_read_once_and_again_from_the_start_after_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    spool = Spool(path)
    assert spool.update() == []
    first = JsonlTracker(path)
    first.log({"train/loss": 3.0}, 1, 64)
    assert [point.step for point in spool.update()] == [1]
    with open(path, "ab") as torn:
        torn.write(b'{"step": 2, "samp')
    assert [point.step for point in spool.update()] == [1]
    second = JsonlTracker(path, start_step=1)
    for step, loss in ((2, 2.0), (3, 1.0)):
        second.log({"train/loss": loss}, step, 64 * step)
    assert [point.metrics["train/loss"] for point in spool.update()] == [3.0, 2.0, 1.0]
    third = JsonlTracker(path, start_step=1)
    for step, loss in ((2, 7.0), (3, 6.0), (4, 5.0)):
        third.log({"train/loss": loss}, step, 64 * step)
    assert [point.metrics["train/loss"] for point in spool.update()] == [3.0, 7.0, 6.0, 5.0]


def test_once_prints_a_frame_without_a_terminal(running):
    result = CliRunner().invoke(main, ["watch", str(running), "--once"])
    assert result.exit_code == 0
    assert "12.8k of 25.6k samples" in result.output


def test_on_a_terminal_it_ends_when_the_run_ends(running):
    process = subprocess.Popen(
        [sys.executable, "-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]))",
         sys.executable, "-m", "pipeline", "watch", str(running)],
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    shown = b""
    while b"training" not in shown:
        shown += process.stdout.read1()
    assert process.poll() is None
    write_json(running / "train" / "summary.json", {"samples_seen": 25_600})
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"trained" in rest
    assert read_json(running / "train" / "summary.json") == {"samples_seen": 25_600}
