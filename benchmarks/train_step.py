"""Our trainer against open_clip's own: samples per second of whole training steps, and peak memory.

    python benchmarks/train_step.py [--quick] [--model ViT-S-32-alt] [--batch-size 16] [--precision fp32]

The peer is `python -m open_clip_train.main` of the installed package. Same machine, model, batch, shards, precision,
number of loader processes and AdamW settings; ours trains with `openclip` and with `neuclip` (as in the recipe cc3m).
Pictures: OpenStax (../shared/data) at a short side of 512 pixels, drawn scenes where they are absent; JPEG.

Each trainer runs twice, for few and for more steps, as a process of its own; what the further steps take is the
difference, so that starting and saving do not count. On a GPU that is time; on a CPU it is processor time of one
thread per process, loader processes included, which other work on the machine hardly disturbs. Prints one JSON line:
{"ratio_openclip": ours / theirs, "ratio_neuclip": .., "memory_openclip": our peak / theirs, "memory_neuclip": ..};
without --quick also benchmarks/results/train_step.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from lab.shards import all_shards, let_open_clip_read, pictures, write_corpus
from lab.study import RESULTS, machine
from pipeline.files import write_json

SHARDS, SIDE = 4, 512
PRECISIONS = {"fp32": "fp32", "bf16": "amp_bf16", "fp16": "amp"}  # as open_clip calls them
OURS = ("openclip", "neuclip")


class Cost(NamedTuple):
    """Of a process: seconds, as the module says, and the peak of its memory, loader processes apart."""

    seconds: float
    mib: float


def theirs(corpus: Path, folder: Path, steps: int, arguments: argparse.Namespace) -> list[str]:
    """The command of open_clip's run."""
    return [
        *(sys.executable, __file__, "--as-peer", f"--train-data={all_shards(corpus, SHARDS)}"),
        *(f"--train-num-samples={steps * arguments.batch_size}", "--dataset-type=webdataset", "--epochs=1"),
        *(f"--batch-size={arguments.batch_size}", f"--workers={arguments.workers}", f"--model={arguments.model}"),
        *(f"--precision={PRECISIONS[arguments.precision]}", "--lr=1e-3", "--wd=0.1", "--warmup=100"),
        *("--beta1=0.9", "--beta2=0.98", "--eps=1e-6", "--grad-clip-norm=1.0", "--log-every-n-steps=1"),
        *(f"--logs={folder}", "--name=peer", "--save-frequency=0"),
    ]


def ours(objective: str, corpus: Path, folder: Path, steps: int, arguments: argparse.Namespace) -> list[str]:
    """The command of our run."""
    return [
        *(sys.executable, "-m", "pipeline", "train", "cc3m", "--run-dir", str(folder)),
        *(f"loader.manifest={corpus}", f"objective={objective}", f"model.name={arguments.model}"),
        *("train.epochs=null", f"train.steps={steps}", f"train.global_batch_size={arguments.batch_size}"),
        *(f"train.precision={arguments.precision}", "train.deepspeed=zero0", "train.log_every_steps=1"),
        *("optimizer={lr: 1e-3, warmup: 100, weight_decay: 0.1, betas: [0.9, 0.98], clip_grad_norm: 1.0}",),
        *(f"loader.workers={arguments.workers}", "tracking.mlflow=false", "checkpoint.every_minutes=null"),
        *(f"diagnostics.every_steps={10**9}", "diagnostics.reference_samples=2"),
    ]


def run(command: Sequence[str], log: Path) -> Cost:
    """Runs a process to its end."""
    log.parent.mkdir(parents=True, exist_ok=True)
    on_cpu = not torch.cuda.is_available()
    started = time.perf_counter()
    with open(log, "w") as stream:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} if on_cpu else None
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed: {log.read_text()[-3000:]}")
    seconds = usage.ru_utime + usage.ru_stime if on_cpu else time.perf_counter() - started
    return Cost(seconds, usage.ru_maxrss / 1024)


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """By trainer: samples per second, the best of the turns, and MiB."""
    (few, more), turns = ((3, 9), 1) if arguments.quick else ((3, 27), 3)
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus", pictures(min(1472, (more + 2) * arguments.batch_size)), SIDE, SHARDS)
        for turn, trainer in itertools.product(range(turns), ("open_clip_train", *OURS)):
            costs = []
            for steps in (few, more):
                place = folder / f"{trainer}-{turn}-{steps}"
                how = partial(ours, trainer) if trainer in OURS else theirs
                costs.append(run(how(folder / "corpus", place, steps, arguments), place.with_suffix(".log")))
            rate = (more - few) * arguments.batch_size / (costs[1].seconds - costs[0].seconds)
            found = {"samples_per_second": rate, "mib": costs[1].mib}
            best[trainer] = max(best.get(trainer, found), found, key=lambda f: f["samples_per_second"])
    return best


def main() -> None:
    if sys.argv[1:2] == ["--as-peer"]:
        from open_clip_train.main import main as open_clip_main

        let_open_clip_read()
        open_clip_main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, once")
    parser.add_argument("--model", default="ViT-S-32-alt", help="an architecture of open_clip")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--workers", type=int, default=1, help="loader processes")
    arguments = parser.parse_args()
    best = measure(arguments)
    peer = best["open_clip_train"]
    result = {f"ratio_{o}": round(best[o]["samples_per_second"] / peer["samples_per_second"], 3) for o in OURS}
    result |= {f"memory_{o}": round(best[o]["mib"] / peer["mib"], 3) for o in OURS}
    if not arguments.quick:
        settings = {key: value for key, value in vars(arguments).items() if key != "quick"}
        rounded = {trainer: {key: round(value, 3) for key, value in found.items()} for trainer, found in best.items()}
        write_json(RESULTS / "train_step.json", {**result, "trainers": rounded, **settings, "machine": machine()})
    print(json.dumps(result))


if __name__ == "__main__":
    main()
