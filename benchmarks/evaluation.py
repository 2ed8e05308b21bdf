"""Our evaluation against the official one: DataComp's `evaluate_model` with clip-benchmark, same data, same checkpoint.

    git clone https://github.com/mlfoundations/datacomp PEER
    python benchmarks/evaluation.py --peer PEER [--peer-python PYTHON] [--model FOLDER]

--peer-python: of an environment with clip-benchmark 1.4.0, wilds 2.0.0 and datasets beside open_clip; this one where
it is not given. What is patched to run the official code is in `lab/official_evaluation.py`. All 40 tasks are drawn in
miniature, and one, ImageNet's, again with many images; the model is a tiny one with random weights unless --model names
another. That one task is also measured with JPEGs of the size that ImageNet's have: on a model that takes 224 pixels
but does little, where reading is all there is to do, as it is on a GPU, and on a ViT-B/32.

Every metric that the official code gives is compared. Times are processor seconds of one thread and no loader
processes, medians of runs taken in turn, imports not counted; seconds by the clock are recorded too. Prints the table
of docs/evaluation.md and one JSON line {"max_abs_difference": .., "speedup_suite": .., "speedup_one_task": ..,
"speedup_photographs": .., "speedup_photographs_vit_b_32": ..}, and writes benchmarks/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_prep.fabricate.datacomp import fabricate_datacomp
from lab.photographs import enlarge
from lab.study import RESULTS, machine
from pipeline.config.schema import ModelConfig
from pipeline.errors import UserError
from pipeline.evaluation.suite import evaluate
from pipeline.evaluation.tasks import datacomp_tasks, load_tasks
from pipeline.files import read_json, write_json
from pipeline.models.untrained import write_untrained

BATCH = 64
BIG_TASK = "imagenet1k"
OFFICIAL = Path(__file__).parent / "lab" / "official_evaluation.py"
VIT = {"image_size": 224, "patch_size": 32}
NARROW = ModelConfig(
    name="narrow",
    config={
        "embed_dim": 32,
        "vision_cfg": {**VIT, "width": 64, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 2},
    },
)
Metrics = dict[str, dict[str, float | None]]


class Setting(NamedTuple):
    """What is measured: tasks of so many images each, on a model, with photographs or with what is drawn."""

    tasks: list[str]
    images: int
    model: Path
    photographs: bool = False


def ours(model: Path, data: Path, tasks: list[str], work: Path) -> dict[str, Any]:
    """Seconds of the tasks, of the processor and by the clock, and their metrics."""
    options: dict[str, Any] = {"batch_size": BATCH, "workers": 0, "device": "cpu", "force": True}
    started, began = time.process_time(), time.perf_counter()
    results = evaluate(model, data, work / "results", tasks, **options)
    seconds, wall = time.process_time() - started, time.perf_counter() - began
    metrics = {result["task"]: result["metrics"] for result in results}
    return {"seconds": seconds, "wall_seconds": wall, "metrics": metrics}


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


def compare(name: str, setting: Setting, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both on the same fabricated data, in turn; times are medians."""
    tasks, images, model, photographs = setting
    known, data = datacomp_tasks(), work / name
    fabricate_datacomp(data, {task: known[task].model_dump() for task in tasks}, images=images)
    if photographs:
        enlarge(data)
    runs: dict[str, list[dict[str, Any]]] = {"official": [], "ours": []}
    for _ in range(arguments.repeats):
        runs["official"].append(theirs(model, data, tasks, work, arguments.peer, arguments.peer_python))
        runs["ours"].append(ours(model, data, tasks, work))
    processor, clock = (
        {side: round(statistics.median(run[kind] for run in those), 3) for side, those in runs.items()}
        for kind in ("seconds", "wall_seconds")
    )
    return {
        "tasks": len(tasks),
        "images_per_task": images,
        "model": model.name,
        "processor_seconds": processor,
        "all_processor_seconds": {side: [round(run["seconds"], 3) for run in those] for side, those in runs.items()},
        "wall_seconds": clock,
        "speedup": processor["official"] / processor["ours"],
        "load": os.getloadavg(),
        "parity": parity(runs["official"][-1], runs["ours"][-1]["metrics"]),
        "libraries_of_the_official_code": runs["official"][-1]["versions"],
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
    parser.add_argument("--photographs", type=int, default=400, help="as many JPEGs of 500 x 375 pixels")
    parser.add_argument("--photographs-vit", type=int, default=64, help="of these for the ViT-B/32")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = arguments.model or write_untrained(work / "tiny-with-random-weights")
        narrow = write_untrained(work / "narrow-with-random-weights", config=NARROW)
        large = write_untrained(work / "ViT-B-32-with-random-weights", config=ModelConfig(name="ViT-B-32"))
        settings = {
            "suite": Setting(list(datacomp_tasks()), arguments.images, model),
            "one_task": Setting([BIG_TASK], arguments.big_images, model),
            "photographs": Setting([BIG_TASK], arguments.photographs, narrow, True),
            "photographs_vit_b_32": Setting([BIG_TASK], arguments.photographs_vit, large, True),
        }
        found = {}
        for name, setting in settings.items():
            found[name] = compare(name, setting, work, arguments)
            print({key: value for key, value in found[name].items() if "seconds" in key}, file=sys.stderr)
    print_table(found["suite"]["parity"])
    rows = [row for compared in found.values() for row in compared["parity"].values()]
    line = {
        "max_abs_difference": max(row["max_abs_difference"] for row in rows),
        **{f"speedup_{name}": round(compared["speedup"], 2) for name, compared in found.items()},
    }
    write_json(RESULTS / "evaluation.json", {**line, "machine": machine(), **found})
    print(json.dumps(line))


if __name__ == "__main__":
    main()
