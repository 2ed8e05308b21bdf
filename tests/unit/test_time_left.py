"""When training ends, by the end of its log."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pipeline.time_left import recent_rate, seconds_left, total_samples
from pipeline.tracking.jsonl import JsonlTracker, Point, last_points, read_points


def point(seen: int, rate: float = 100.0, time: float = 0.0, **more: float) -> Point:
    return Point(seen // 10, seen, time, {"train/samples_per_second": rate, **more})


def test_the_rate_is_the_median_of_the_last_points() -> None:
    assert recent_rate([point(i, rate) for i, rate in enumerate([1.0] * 50 + [100.0] * 10)]) == 100
    assert recent_rate([Point(1, 1, 0.0, {})]) is None


@pytest.mark.parametrize(
    ("train", "total"),
    [
        ({"global_batch_size": 30, "steps": 7}, 210),
        ({"global_batch_size": 30, "samples": 1000}, 990),
        ({"global_batch_size": 30, "epochs": 2}, 990),  # of 500 samples, as 250 are half an epoch
        ({"global_batch_size": 30}, None),
        ({"epochs": 2}, None),
        ({"global_batch_size": "many", "steps": 7}, None),
    ],
)
def test_how_much_there_is_to_see(train: dict[str, object], total: float | None) -> None:
    scores_of_a_checkpoint = Point(30, 250, 0.0, {"eval/birds": 0.5})
    points = [point(250, **{"train/epoch": 0.5}), scores_of_a_checkpoint]
    assert total_samples(train, points) == total


def test_nothing_is_known_before_the_first_point() -> None:
    assert total_samples({"global_batch_size": 30, "epochs": 2}, []) is None
    assert seconds_left([], 1000, now=0.0) is None


def test_what_is_left_shrinks_with_the_clock_but_not_while_nothing_is_trained() -> None:
    points = [point(seen, time=seen / 100) for seen in (100, 200, 300)]  # the last at 3 s
    assert seconds_left(points, 1000, now=3.0) == 7.0
    assert seconds_left(points, 1000, now=4.0) == 6.0
    assert seconds_left(points, 1000, now=5000.0) == 5.0, "the job waited in the queue since: it trains, but just began"
    assert seconds_left(points, 300, now=3.0) == 0.0
    assert seconds_left(points, None, now=3.0) is None


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_points(path) == []
    tracker = JsonlTracker(path)
    for step in range(1, 200):
        tracker.log({"train/loss": step / 7}, step, 64 * step)
    every = read_points(path)
    assert last_points(path) == every
    lines = path.read_bytes().splitlines(keepends=True)
    sizes = list(itertools.accumulate(len(line) for line in reversed(lines)))  # of the last, the last two, ...
    for cut in range(sizes[2], sizes[4]):  # wherever in a line it begins
        assert last_points(path, cut) == every[-sum(size <= cut for size in sizes) :]
