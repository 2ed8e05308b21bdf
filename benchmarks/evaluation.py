"""Our evaluation against the official one: DataComp's `evaluate_model` with clip-benchmark, same data, same checkpoint.

    git clone https://github.com/mlfoundations/datacomp PEER
    python benchmarks/evaluation.py --peer PEER [--peer-python PYTHON] [--model FOLDER]

--peer-python: of an environment with clip-benchmark 1.4.0, wilds 2.0.0 and datasets beside open_clip; this one where
it is not given. What is patched to run the official code is in `lab/official_evaluation.py`. All 40 tasks are drawn in
miniature, and one again with many images; the model is a tiny one with random weights unless --model names another.
Every metric that the official code gives is compared. Times are processor seconds of one thread and no loader
processes, the lesser of two runs taken in turn, imports not counted. Prints the table of docs/evaluation.md and one
JSON line {"max_abs_difference": .., "speedup_suite": .., "speedup_one_task": ..}, and writes
benchmarks/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from data_prep.fabricate.datacomp import fabricate_datacomp
from lab.study import RESULTS, machine
from pipeline.errors import UserError
from pipeline.evaluation.suite import evaluate
from pipeline.evaluation.tasks import datacomp_tasks, load_tasks
from pipeline.files import read_json, write_json
from pipeline.models.untrained import write_untrained

BATCH = 64
BIG_TASK = "imagenet1k"
OFFICIAL = Path(__file__).parent / "lab" / "official_evaluation.py"
Metrics = dict[str, dict[str, float | None]]


def ours(model: Path, data: Path, tasks: list[str], work: Path) -> tuple[float, Metrics]:
    """Processor seconds of the tasks, and their metrics."""
    options: dict[str, Any] = {"batch_size": BATCH, "workers": 0, "device": "cpu", "force": True}
    started = time.process_time()
    results = evaluate(model, data, work / "results", tasks, **options)
    return time.process_time() - started, {result["task"]: result["metrics"] for result in results}


def theirs(model: Path, data: Path, tasks: list[str], work: Path, peer: Path, python: str) -> dict[str, Any]:
    """What `lab/official_evaluation.py` writes. Raises UserError with the end of its output where it fails."""
    known = load_tasks(data)
    write_json(work / "request.json", {"batch_size": BATCH, "sizes": {name: known[name].size for name in tasks}})
    paths = [str(path.resolve()) for path in (peer, data, model, work / "request.json", work / "official.json")]
    ended = subprocess.run([python, str(OFFICIAL), *paths], capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise UserError(f"the official evaluation ended with {ended.returncode}:\n{ended.stderr[-3000:]}")
    return read_json(work / "official.json")


def difference(official: float | None, own: float | None) -> float:
    """Absolute; 0 where neither has a number (NaN there, null here), inf where one has."""
    absent = official is None or math.isnan(official), own is None
    if any(absent):
        return 0.0 if all(absent) else math.inf
    return abs(float(official or 0) - float(own or 0))


def parity(official: dict[str, Any], own: Metrics) -> dict[str, dict[str, Any]]:
    """By task: main metric, both scores, number of metrics compared, their largest difference."""
    table = {}
    for task, metrics in official["metrics"].items():
        differences = [difference(value, own[task].get(name)) for name, value in metrics.items()]
        name = official["main_metrics"][task]
        table[task] = {
            "main_metric": name if name in metrics else None,
            "official": metrics.get(name),
            "ours": own[task].get(name),
            "metrics": len(metrics),
            "max_abs_difference": max(differences),
        }
    return table


def compare(name: str, tasks: list[str], model: Path, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both on the same fabricated data, in turn; the times are the least."""
    known, data = datacomp_tasks(), work / name
    images = {"suite": arguments.images, "one_task": arguments.big_images}[name]
    fabricate_datacomp(data, {task: known[task].model_dump() for task in tasks}, images=images)
    times: dict[str, list[float]] = {"official": [], "ours": []}
    for _ in range(arguments.repeats):
        official = theirs(model, data, tasks, work, arguments.peer, arguments.peer_python)
        seconds, metrics = ours(model, data, tasks, work)
        times["official"].append(official["seconds"])
        times["ours"].append(seconds)
    least = {side: round(min(values), 3) for side, values in times.items()}
    return {
        "tasks": len(tasks),
        "images_per_task": images,
        "processor_seconds": least,
        "speedup": least["official"] / least["ours"],
        "parity": parity(official, metrics),
        "libraries_of_the_official_code": official["versions"],
    }


def print_table(table: dict[str, dict[str, Any]]) -> None:
    """As in docs/evaluation.md."""
    print("| task | main metric | official | ours | metrics compared | largest difference |\n|---|---|---|---|---|---|")
    for task, row in table.items():
        scores = [
            row["main_metric"] or "none",
            *("" if v is None else f"{v:.6f}" for v in (row["official"], row["ours"])),
        ]
        print(f"| {task} | {' | '.join(scores)} | {row['metrics']} | {row['max_abs_difference']:.1e} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of mlfoundations/datacomp")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has clip-benchmark and wilds")
    parser.add_argument("--model", type=Path, help="an exported model; default: tiny, random weights")
    parser.add_argument("--images", type=int, default=48, help="of each task of the suite")
    parser.add_argument("--big-images", type=int, default=2000, help=f"of {BIG_TASK} where it is timed alone")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = arguments.model or write_untrained(work / "tiny-with-random-weights")
        suite = compare("suite", list(datacomp_tasks()), model, work, arguments)
        one_task = compare("one_task", [BIG_TASK], model, work, arguments)
    print_table(suite["parity"])
    rows = [*suite["parity"].values(), *one_task["parity"].values()]
    line = {
        "max_abs_difference": max(row["max_abs_difference"] for row in rows),
        "speedup_suite": round(suite["speedup"], 2),
        "speedup_one_task": round(one_task["speedup"], 2),
    }
    facts = {"machine": {**machine(), "load": os.getloadavg()}, "model": model.name}
    write_json(RESULTS / "evaluation.json", {**line, **facts, "suite": suite, "one_task": one_task})
    print(json.dumps(line))


if __name__ == "__main__":
    main()
