"""What tracking costs the training loop: its share of a step, with everything on and MLflow fed while it runs.

    python benchmarks/tracking.py [--quick] [--step-seconds 0.1] [--server-away]

A loop that does nothing but burn `--step-seconds` per step has as many metrics as a run of NeuCLIP (fresh tensors and
numbers of each step, more of them in the steps that are logged), the trainer's own callback, and rank 0's trackers:
metrics.jsonl, the terminal (a file here), the record of lives, the shipper to an SQLite file; and a thread that reads
system metrics. --server-away: the shipper's server never answers. `overhead_share` is the time of the callback, in
every step, over the time of all steps: 0.001 is what may be spent. On a machine that does other things at the same time
it counts their turns too; `overhead_share_of_cpu_time` does not. What the
thread and the shipper take of the CPU is told besides.

Prints one JSON line. --quick: 100 steps; else 1000, written to benchmarks/results/tracking.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

from lab.study import RESULTS, machine
from pipeline.callbacks import Logging
from pipeline.config.loader import load_recipe
from pipeline.distributed import World
from pipeline.files import write_json
from pipeline.tracking.metrics import MetricBuffer
from pipeline.tracking.system import watched
from pipeline.tracking.training import training_tracker

LOG_EVERY_STEPS, BATCH = 10, 512
TENSORS, TENSORS_OF_LOGGED_STEPS, NUMBERS = 14, 18, 3  # of a step's output, as training `demo` gives them


@contextlib.contextmanager
def address(folder: Path, away: bool) -> Iterator[str]:
    """Where MLflow is: a file, or a socket that never answers."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        yield f"http://127.0.0.1:{mute.getsockname()[1]}" if away else f"sqlite:///{folder}/mlflow.db"


def measure(folder: Path, uri: str, steps: int, step_seconds: float) -> dict[str, float]:
    """Shares of the loop's time, and what a step and a log point cost it."""
    config = load_recipe("demo", [f"tracking.uri={uri}", f"train.log_every_steps={LOG_EVERY_STEPS}"])
    train = folder / "train"
    train.mkdir()
    (train / "recipe.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    progress = SimpleNamespace(step=0, samples_seen=0)
    trainer: Any = SimpleNamespace(
        config=config,
        metrics=MetricBuffer(),
        progress=progress,
        total_steps=steps,
        corpus=range(10**6),
        world=World(rank=0, local_rank=0, size=1, device=torch.device("cpu")),
        tracker=training_tracker(config.tracking, folder, train / "metrics.jsonl", (0, 0), steps, {}),
    )
    callback = Logging(LOG_EVERY_STEPS, 0)
    steps_seen: list[tuple[float, float, float]] = []  # seconds of a step; of tracking in it; of CPU for that
    threads_began = time.process_time() - time.thread_time()
    with watched(train, 0, lambda: (progress.step, progress.samples_seen), config.tracking.system_every_seconds):
        for _ in range(LOG_EVERY_STEPS + steps):
            started = time.perf_counter()
            burn(step_seconds)
            progress.step += 1
            progress.samples_seen += BATCH
            output: Any = SimpleNamespace(metrics=metrics_of(progress.step))
            began, cpu_began = time.perf_counter(), time.thread_time()
            trainer.metrics.record("data/wait_seconds", 0.001)
            trainer.metrics.record("data/empty_captions", 0.0)
            callback.after_step(trainer, None, output)  # type: ignore[arg-type]
            ended = time.perf_counter()
            steps_seen.append((ended - started, ended - began, time.thread_time() - cpu_began))
    of_threads = time.process_time() - time.thread_time() - threads_began
    trainer.tracker.close("finished")
    of_shipper = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole, spent, cpu = zip(*steps_seen[LOG_EVERY_STEPS:], strict=True)  # the first ones load what is loaded once
    return {
        "overhead_share": sum(spent) / sum(whole),
        "overhead_share_of_cpu_time": sum(cpu) / sum(whole),
        "step_microseconds": 1e6 * sum(spent) / steps,
        "log_point_microseconds": 1e6 * statistics.median(spent[LOG_EVERY_STEPS - 1 :: LOG_EVERY_STEPS]),
        "thread_share_of_a_core": of_threads / sum(whole),
        "shipper_share_of_a_core": (of_shipper.ru_utime + of_shipper.ru_stime) / sum(whole),
    }


def metrics_of(step: int) -> dict[str, torch.Tensor | float]:
    """A step's output: new tensors, as an objective makes them."""
    tensors = TENSORS if step % LOG_EVERY_STEPS else TENSORS_OF_LOGGED_STEPS
    return {
        **{f"train/tensor_{n}": torch.rand(()) for n in range(tensors)},
        **{f"train/number_{n}": float(n) for n in range(NUMBERS)},
    }


def burn(seconds: float) -> None:
    """Keep a core busy: what tracking takes of it is not hidden by waiting."""
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 steps")
    parser.add_argument("--step-seconds", type=float, default=0.1)
    parser.add_argument("--server-away", action="store_true", help="the server takes connections and never answers")
    arguments = parser.parse_args()
    steps = 100 if arguments.quick else 1000
    with (
        tempfile.TemporaryDirectory() as name,
        address(Path(name), arguments.server_away) as uri,
        open(Path(name) / "terminal", "w") as terminal,
        contextlib.redirect_stdout(terminal),
    ):
        measured = measure(Path(name), uri, steps, arguments.step_seconds)
    result = {name: float(f"{value:.3g}") for name, value in measured.items()}
    asked = {"steps": steps, "step_seconds": arguments.step_seconds, "server_away": arguments.server_away}
    result = {**result, **asked}
    if not arguments.quick:
        write_json(RESULTS / "tracking.json", {**result, "machine": machine()})
    print(json.dumps(result))


if __name__ == "__main__":
    main()
