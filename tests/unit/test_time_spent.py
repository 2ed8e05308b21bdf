"""What training took, summed by hand over lives on other numbers of ranks."""

import pytest

from pipeline.time_spent import TimeSpent, time_spent, total_time
from pipeline.tracking.jsonl import Point


def point(samples, rate, gpus, ranks):
    metrics = {"train/samples_per_second": rate, "ranks/gpus": gpus, "ranks/count": ranks}
    return Point(samples // 100, samples, 0.0, {name: value for name, value in metrics.items() if value is not None})


def test_hours_follow_the_ranks_of_each_life():
    lives = [point(1000, 10.0, 2.0, 2.0), point(3000, 20.0, 2.0, 2.0), point(3600, 60.0, 8.0, 8.0)]
    spent = time_spent(lives)
    assert [s.train_seconds for s in spent] == [100, 200, 210]
    assert [s.gpu_hours for s in spent] == pytest.approx([200 / 3600, 400 / 3600, 480 / 3600])
    assert spent[-1].cpu_hours == 0
    assert total_time(lives) == spent[-1]


def test_processes_without_a_gpu_are_cpu_hours():
    assert total_time([point(7200, 1.0, 0.0, 3.0)]) == TimeSpent(7200, 0, pytest.approx(6))


def test_hours_are_unknown_where_the_log_does_not_say_on_what():
    spent = total_time([point(100, 10.0, 2.0, 2.0), point(200, 10.0, None, None), point(300, 10.0, 2.0, 2.0)])
    assert spent == TimeSpent(30, None, None)


def test_nothing_logged_took_nothing_and_a_point_without_a_rate_adds_nothing():
    assert total_time([]) == TimeSpent(0, 0, 0)
    assert total_time([point(100, None, 1.0, 1.0), point(200, 10.0, 1.0, 1.0)]).train_seconds == 10
    assert total_time([point(100, 0.0, 1.0, 1.0)]).train_seconds == 0
