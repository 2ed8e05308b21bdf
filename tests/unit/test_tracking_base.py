"""A tracker that fails is reported once and stops neither its siblings nor training (contract 7)."""

import logging

import pytest

from pipeline.tracking.base import CompositeTracker, NullTracker


class Recorder:
    def __init__(self):
        self.points = []
        self.closed = None

    def log(self, metrics, step, samples_seen):
        self.points.append((dict(metrics), step, samples_seen))

    def close(self, status):
        self.closed = status


class Broken:
    def __init__(self):
        self.calls = 0

    def log(self, metrics, step, samples_seen):
        self.calls += 1
        raise OSError("disk full")

    def close(self, status):
        raise OSError("still full")


def test_a_failing_child_is_warned_about_once_and_the_others_get_everything(caplog):
    first, broken, last = Recorder(), Broken(), Recorder()
    tracker = CompositeTracker([first, broken, last])
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            tracker.log({"train/loss": 1.0 / (step + 1)}, step, 10 * step)
        tracker.close("finished")
    assert first.points == last.points == [({"train/loss": 1.0 / (s + 1)}, s, 10 * s) for s in range(3)]
    assert first.closed == last.closed == "finished"
    assert broken.calls == 3, "it may recover, so it is still asked"
    assert [record.getMessage() for record in caplog.records] == ["Broken failed, training goes on: disk full"]


def test_a_request_to_stop_passes_through():
    class Interrupted(NullTracker):
        def log(self, metrics, step, samples_seen):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CompositeTracker([Interrupted()]).log({}, 0, 0)
