"""How busy a node is: one small spool per node, RUN/train/system/node_<n>.jsonl, in the form of metrics.jsonl.

Names are MLflow's (`system/node_0/cpu_utilization_percentage`), so that its page for system metrics shows them.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean

import psutil
import pynvml

from pipeline.tracking.jsonl import JsonlTracker, read_points

FOLDER = "system"

_log = logging.getLogger(__name__)


@contextmanager
def watched(folder: Path, node: int, progress: Callable[[], tuple[int, int]], every_seconds: float) -> Iterator[None]:
    """Note how busy this machine is while the block runs; whatever fails in that, the block goes on.

    folder: RUN/train. node: the number of this machine in the run. progress: steps done and samples seen. A line is
    the mean of what was measured since the one before; while the run is not further than that there is none, in a
    resumed run too: unlike its metrics, what a machine did does not come again.
    """
    stop = threading.Event()
    arguments = (folder, node, progress, every_seconds, stop)
    thread = threading.Thread(target=_watch, args=arguments, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=1)


def _watch(
    folder: Path,
    node: int,
    progress: Callable[[], tuple[int, int]],
    every_seconds: float,
    stop: threading.Event,
) -> None:
    warned = False
    measured: list[dict[str, float]] = []
    spool: JsonlTracker | None = None
    path = folder / FOLDER / f"node_{node}.jsonl"
    last_seen = max((point.samples_seen for point in read_points(path)), default=-1)
    sensors = Sensors(folder)
    while not stop.wait(every_seconds):
        try:
            measured.append(sensors.read())
            step, seen = progress()
            if seen <= last_seen:
                continue
            spool = spool or JsonlTracker(path, sys.maxsize)
            names = {name: None for values in measured for name in values}
            means = {name: fmean(values[name] for values in measured if name in values) for name in names}
            spool.log({f"system/node_{node}/{name}": value for name, value in means.items()}, step, seen)
            last_seen, measured = seen, []
        except Exception as error:
            measured = []
            if not warned:
                _log.warning("system metrics of this node failed, training goes on: %s", error)
            warned = True


class Sensors:
    """CPU, memory, network and the file system of `folder`; each GPU, where NVIDIA's driver tells of one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._gpus = _gpus()
        psutil.cpu_percent()  # of the time since the call before
        self._last = self._traffic()

    def read(self) -> dict[str, float]:
        """What is now; rates are of the time since the reading before."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._folder))
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / 1e6,
        }
        now = self._traffic()
        seconds = max(now["time"] - self._last["time"], 1e-3)
        for name in ("network_receive", "network_transmit"):
            values[f"{name}_megabytes_per_second"] = (now[name] - self._last[name]) / 1e6 / seconds
        self._last = now
        for number, gpu in enumerate(self._gpus):
            for read in _GPU_READINGS:
                with suppress(pynvml.NVMLError):  # not every card tells everything
                    values |= {f"gpu_{number}_{name}": value for name, value in read(gpu).items()}
        return values

    def _traffic(self) -> dict[str, float]:
        network = psutil.net_io_counters()
        received, sent = (network.bytes_recv, network.bytes_sent) if network else (0, 0)
        return {"time": time.monotonic(), "network_receive": received, "network_transmit": sent}


def _gpus() -> list[object]:
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _utilization(gpu: object) -> dict[str, float]:
    return {"utilization_percentage": pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu}


def _memory(gpu: object) -> dict[str, float]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    return {
        "memory_usage_megabytes": memory.used / 1e6,
        "memory_usage_percentage": 100 * memory.used / memory.total,
    }


def _power(gpu: object) -> dict[str, float]:
    return {"power_usage_watts": pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3}


_GPU_READINGS = (_utilization, _memory, _power)
