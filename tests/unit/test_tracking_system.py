"""System metrics: plausible readings, one line per step at most, and no failure that reaches the loop."""

import logging
import math
import shutil
import subprocess
import time
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from pipeline.tracking import system
from pipeline.tracking.base import CompositeTracker
from pipeline.tracking.jsonl import JsonlTracker, read_points
from pipeline.tracking.lives import LivesTracker
from pipeline.tracking.system import Sensors, watched

PLENTY = 30  # seconds, on a busy machine


def eventually(condition):
    deadline = time.monotonic() + PLENTY
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_readings_are_those_of_the_machine(tmp_path):
    sensors = Sensors(tmp_path)
    time.sleep(0.05)
    values = sensors.read()
    assert 0 <= values["cpu_utilization_percentage"] <= 100
    total = psutil.virtual_memory().total / 1e6
    assert 0 < values["system_memory_usage_megabytes"] < total
    assert values["disk_available_megabytes"] == pytest.approx(shutil.disk_usage(tmp_path).free / 1e6, rel=0.05)
    assert all(math.isfinite(value) and value >= 0 for value in values.values())


def test_gpus_are_read_from_the_driver(tmp_path, monkeypatch):
    """A model of NVIDIA's library with two cards; the second one does not tell its power."""

    def power(handle):
        if handle == "card 1":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 350_000

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", "card {}".format)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(used=20e9, total=80e9))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda handle: SimpleNamespace(gpu=97))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", power)
    values = {name: value for name, value in Sensors(tmp_path).read().items() if name.startswith("gpu")}
    shared = {"utilization_percentage": 97, "memory_usage_megabytes": 20e3, "memory_usage_percentage": 25}
    expected = {f"gpu_{n}_{name}": value for n in (0, 1) for name, value in shared.items()}
    assert values == {**expected, "gpu_0_power_usage_watts": 350}


def test_a_line_per_step_at_most_is_the_mean_since_the_one_before(tmp_path, monkeypatch):
    readings = iter(range(1000))
    monkeypatch.setattr(Sensors, "read", lambda self: {"cpu_utilization_percentage": float(next(readings))})
    at = SimpleNamespace(step=0)
    spool = tmp_path / "system/node_3.jsonl"
    with watched(tmp_path, 3, lambda: (at.step, 10 * at.step), every_seconds=0.005):
        eventually(lambda: len(read_points(spool)) == 1)
        first = next(readings)
        eventually(lambda: next(readings) > first + 5)  # the loop hangs: nothing is said
        assert len(read_points(spool)) == 1
        at.step = 4
        eventually(lambda: len(read_points(spool)) == 2)
    points = read_points(spool)
    assert [(point.step, point.samples_seen) for point in points] == [(0, 0), (4, 40)]
    name = "system/node_3/cpu_utilization_percentage"
    assert points[0].metrics == {name: 0.0}
    assert points[1].metrics[name] > 2

    at.step = 2  # killed, and resumed from a checkpoint: what MLflow has already is not said in other words
    with watched(tmp_path, 3, lambda: (at.step, 10 * at.step), every_seconds=0.005):
        last = next(readings)
        eventually(lambda: next(readings) > last + 5)
        at.step = 5
        eventually(lambda: len(read_points(spool)) == 3)
    assert [point.samples_seen for point in read_points(spool)] == [0, 40, 50]


def test_sensors_that_fail_are_warned_about_once(tmp_path, monkeypatch, caplog):
    calls = []

    def fail(self):
        calls.append(1)
        raise OSError("no /proc here")

    monkeypatch.setattr(Sensors, "read", fail)
    with caplog.at_level(logging.WARNING), watched(tmp_path, 0, lambda: (1, 1), every_seconds=0.005):
        eventually(lambda: len(calls) > 3)
    warned = [record.getMessage() for record in caplog.records if record.name == system.__name__]
    assert warned == ["system metrics of this node failed, training goes on: no /proc here"]


def test_a_full_disk_stops_the_spool_and_not_the_run(tmp_path, caplog):
    """One warning; when there is room again, points and lives go on, and what was written is whole."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        train = disk / "train"
        train.mkdir()
        JsonlTracker(train / "metrics.jsonl").log({"train/loss": 1.0}, 1, 10)
        JsonlTracker(train / "metrics.jsonl", 1).log({"train/loss": 1.0}, 2, 20)
        with open(disk / "ballast", "wb", buffering=0) as ballast:
            while True:
                try:
                    ballast.write(bytes(4096))
                except OSError:
                    break
        spool, lives = JsonlTracker(train / "metrics.jsonl", 1), LivesTracker(train, 1, 10, {"note": "x" * 5000})
        tracker = CompositeTracker([spool, lives])
        with caplog.at_level(logging.WARNING):
            for step in range(2, 200):
                tracker.log({f"train/{n}": 1.0 for n in range(20)}, step, 10 * step)
        written = [point.step for point in read_points(train / "metrics.jsonl")]
        assert written == list(range(1, len(written) + 1))
        assert len(written) < 150
        names = [record.getMessage().split(" failed")[0] for record in caplog.records]
        assert sorted(names) == ["JsonlTracker", "LivesTracker"]
        (disk / "ballast").unlink()
        tracker.log({"train/loss": 0.5}, 200, 2000)
        tracker.close("finished")
        assert [point.step for point in read_points(train / "metrics.jsonl")] == [*written, 200]
        assert [line[:17] for line in (train / "lives.jsonl").read_text().splitlines()] == [
            '{"event": "begin"', '{"event": "end", '
        ]  # fmt: skip
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
