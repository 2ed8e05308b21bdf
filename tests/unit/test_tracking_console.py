"""The terminal line: what people watch, plain text off a terminal, time left by this process's own rate."""

import io
import time

from pipeline.tracking.console import ConsoleTracker


def lines(tracker_calls, monkeypatch, **options):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    tracker = ConsoleTracker(stream=stream, **options)
    for call, now in tracker_calls:  # noqa: B007 (the clock reads it)
        tracker.log(*call)
    now = 100.0
    tracker.close("finished")
    return stream.getvalue().splitlines()


def test_one_plain_line_per_log(monkeypatch):
    metrics = {"train/loss": 2.5, "train/tau": 0.07, "train/samples_per_second": 1234.4, "secret": 1.0}
    output = lines([((metrics, 10, 2560), 20)], monkeypatch, total_steps=110)
    assert output[0] == "step  10/110  samples 2,560  loss 2.5000  tau 0.0700  samples/s 1,234  left 0:03:20"
    assert output[1] == "training finished after 0:01:40"
    assert "\x1b" not in "".join(output), "no escape codes off a terminal"


def test_a_resumed_run_judges_by_its_own_steps(monkeypatch):
    output = lines([(({}, 90, 0), 0), (({}, 100, 0), 20)], monkeypatch, total_steps=110, start_step=90)
    assert output[0].endswith("left unknown")
    assert output[1].endswith("left 0:00:20")


def test_scores_of_an_earlier_step_come_without_the_time_left(monkeypatch):
    output = lines([(({"eval/colours": 0.25}, 40, 480), 0)], monkeypatch, total_steps=110)
    assert output[0] == "step  40/110  samples 480  eval/colours 0.2500"


def test_a_long_line_is_not_wrapped_or_read_as_markup(monkeypatch):
    metrics = {f"train/{name}": 1e9 for name in ("loss", "tau", "lr", "grad_norm", "samples_per_second")}
    output = lines([((metrics, 1, 10**12), 1)], monkeypatch, total_steps=10**7)
    assert len(output) == 2
    assert len(output[0]) > 80
