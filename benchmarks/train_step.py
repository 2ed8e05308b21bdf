"""Our trainer against open_clip's own: samples per second of whole training steps, and peak memory.

    python benchmarks/train_step.py [--quick] [--model ViT-S-32-alt] [--batch-size 32] [--precision fp32]

The peer is `python -m open_clip_train.main` of the installed package. Same machine, model, batch, shards, precision,
number of loader processes and AdamW settings; ours trains with `openclip` and with `neuclip` (as in the recipe cc3m).
Pictures: OpenStax (../shared/data) at a short side of 512 pixels, drawn scenes where they are absent; JPEG. The
trainers run in turn, each as a process of its own on one GPU or on the CPU; a rate is the median over steps but the
first and the last, the best of the turns. Prints one JSON line: {"ratio_openclip": ours / theirs, "ratio_neuclip": ..,
"memory_openclip": our peak / theirs, "memory_neuclip": ..}; without --quick also benchmarks/results/train_step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.shards import all_shards, let_open_clip_read, pictures, write_corpus
from lab.study import RESULTS, machine
from pipeline.files import write_json
from pipeline.tracking.jsonl import read_points

SHARDS, SIDE, SKIPPED = 4, 512, 3
STEP = re.compile(r"Train Epoch: .* Batch \(t\): ([0-9.]+)")
PRECISIONS = {"fp32": "fp32", "bf16": "amp_bf16", "fp16": "amp"}  # as open_clip calls them


def theirs(corpus: Path, folder: Path, steps: int, arguments: argparse.Namespace) -> dict[str, float]:
    """open_clip's rate and memory."""
    command = [
        *(sys.executable, __file__, "--as-peer", f"--train-data={all_shards(corpus, SHARDS)}"),
        *(f"--train-num-samples={steps * arguments.batch_size}", "--dataset-type=webdataset", "--epochs=1"),
        *(f"--batch-size={arguments.batch_size}", f"--workers={arguments.workers}", f"--model={arguments.model}"),
        *(f"--precision={PRECISIONS[arguments.precision]}", "--lr=1e-3", "--wd=0.1", "--warmup=100"),
        *("--beta1=0.9", "--beta2=0.98", "--eps=1e-6", "--grad-clip-norm=1.0", "--log-every-n-steps=1"),
        *(f"--logs={folder}", "--name=peer", "--save-frequency=0"),
    ]
    memory = run(command, folder / "peer.log")
    seconds = [float(found) for found in STEP.findall((folder / "peer.log").read_text())]
    if len(seconds) != steps:
        raise SystemExit(f"open_clip logged {len(seconds)} steps, not {steps}: {(folder / 'peer.log').read_text()}")
    return {"rate": arguments.batch_size / statistics.median(seconds[SKIPPED:-1]), "mib": memory}


def ours(objective: str, corpus: Path, folder: Path, steps: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Our rate and memory."""
    command = [
        *(sys.executable, "-m", "pipeline", "train", "cc3m", "--run-dir", str(folder)),
        *(f"loader.manifest={corpus}", f"objective={objective}", f"model.name={arguments.model}"),
        *("train.epochs=null", f"train.steps={steps}", f"train.global_batch_size={arguments.batch_size}"),
        *(f"train.precision={arguments.precision}", "train.deepspeed=zero0", "train.log_every_steps=1"),
        *("optimizer={lr: 1e-3, warmup: 100, weight_decay: 0.1, betas: [0.9, 0.98], clip_grad_norm: 1.0}",),
        *(f"loader.workers={arguments.workers}", "tracking.mlflow=false", "checkpoint.every_minutes=null"),
        f"diagnostics.every_steps={10**9}",
    ]
    memory = run(command, folder / "ours.log")
    points = [point.metrics for point in read_points(folder / "train/metrics.jsonl")][SKIPPED:-1]
    shares = {name: statistics.median(p[name] for p in points) for name in ("data/wait_share", "npn/share")}
    return {"rate": statistics.median(p["train/samples_per_second"] for p in points), "mib": memory, **shares}


def run(command: Sequence[str], log: Path) -> float:
    """Runs a process to its end; the peak of its memory, loader processes apart, in MiB."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    with open(log, "w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed: {log.read_text()[-3000:]}")
    return usage.ru_maxrss / 1024


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By trainer, the best of the turns."""
    steps, turns = (8, 1) if arguments.quick else (24, 3)
    best: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = pictures(min(1472, (steps + 2) * arguments.batch_size))
        write_corpus(folder / "corpus", images, SIDE, SHARDS)
        for turn in range(turns):
            found = {"open_clip_train": theirs(folder / "corpus", folder / f"peer{turn}", steps, arguments)}
            for objective in ("openclip", "neuclip"):
                place = folder / f"{objective}{turn}"
                found[objective] = ours(objective, folder / "corpus", place, steps, arguments)
            for trainer, numbers in found.items():
                best[trainer] = max(best.get(trainer, numbers), numbers, key=lambda n: n["rate"])
    return best


def main() -> None:
    if sys.argv[1:2] == ["--as-peer"]:
        from open_clip_train.main import main as open_clip_main

        let_open_clip_read()
        open_clip_main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 steps of each, once")
    parser.add_argument("--model", default="ViT-S-32-alt", help="an architecture of open_clip")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--workers", type=int, default=1, help="loader processes")
    arguments = parser.parse_args()
    best = measure(arguments)
    peer = best["open_clip_train"]
    result = {f"ratio_{o}": round(best[o]["rate"] / peer["rate"], 3) for o in ("openclip", "neuclip")}
    result |= {f"memory_{o}": round(best[o]["mib"] / peer["mib"], 3) for o in ("openclip", "neuclip")}
    if not arguments.quick:
        settings = {key: value for key, value in vars(arguments).items() if key != "quick"}
        rounded = {trainer: {key: round(value, 3) for key, value in found.items()} for trainer, found in best.items()}
        write_json(RESULTS / "train_step.json", {**result, "trainers": rounded, **settings, "machine": machine()})
    print(json.dumps(result))


if __name__ == "__main__":
    main()
