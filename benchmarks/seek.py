"""From a cold start to sample 500,000,000 of a billion: seconds and memory, in a process of its own.

    python benchmarks/seek.py [--quick]

Fabricates the manifest of 100,000 shards of 10,000 samples each (--quick: 1,000 shards), and the one shard in which
run position 500,000,000 lies. Then a fresh process opens the corpus as training does, and asks for that position
alone. Prints one JSON line: open_seconds (the manifest, checked against its fingerprint, and the order), seek_seconds
(position to decoded sample), memory_mib (peak of the process from before the opening on, its imports left out). Writes
benchmarks/results/seek.json (not with --quick).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_prep.manifest import write_manifest
from data_prep.shard import Sample, index_path, write_shard
from lab.study import RESULTS, machine
from pipeline.config.schema import LoaderConfig
from pipeline.data.loader import Corpus
from pipeline.data.order import SampleOrder
from pipeline.files import sha256_file, write_json

SHARDS, QUICK_SHARDS, SAMPLES_PER_SHARD = 100_000, 1_000, 10_000
SEED = 0


def fabricate(folder: Path, shards: int, position: int) -> None:
    """A manifest of `shards` shards, of which only the one with `position` is written."""
    order = SampleOrder(np.full(shards, SAMPLES_PER_SHARD), SEED)
    there = int(order.locate(np.array([position]))[0][0])
    path = folder / _name(there)
    image = io.BytesIO()
    Image.new("RGB", (32, 32)).save(image, "PNG")
    write_shard(path, (Sample(f"{n:032x}", image.getvalue(), "png", f"c {n}", {}) for n in range(SAMPLES_PER_SHARD)))
    rows = [_row(n, hashlib.sha256(b"%d" % n).hexdigest()) for n in range(shards)]
    facts = {"bytes": path.stat().st_size, "sha256": sha256_file(path), "index_sha256": sha256_file(index_path(path))}
    rows[there].update(facts)
    write_manifest(folder, rows, {"title": "benchmark"})


def _name(shard: int) -> str:
    return f"shards/{shard:06d}-000.tar"


def _row(shard: int, digest: str) -> dict[str, Any]:
    return {
        "path": _name(shard),
        "samples": SAMPLES_PER_SHARD,
        "bytes": 500_000_000 + shard,
        "sha256": digest,
        "index_sha256": digest[::-1],
        "work_item": shard,
        "attempt": 0,
    }


def measure(folder: str, position: int) -> dict[str, float]:
    """For a process of its own."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = _memory("VmRSS")
    started = time.perf_counter()
    corpus = Corpus(LoaderConfig(manifest=folder), SEED, 32, lambda captions: torch.zeros(len(captions), 1))
    opened = time.perf_counter()
    corpus.__getitems__([position])
    found = time.perf_counter()
    return {
        "open_seconds": round(opened - started, 3),
        "seek_seconds": round(found - opened, 3),
        "memory_mib": round((_memory("VmHWM") - before) / 1024, 1),
    }


def _memory(name: str) -> int:
    """KiB of this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(f"{name}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 shards")
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shards = QUICK_SHARDS if arguments.quick else SHARDS
    position = shards * SAMPLES_PER_SHARD // 2
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, position)))
        return
    with tempfile.TemporaryDirectory() as name:
        fabricate(Path(name), shards, position)
        command = [sys.executable, __file__, "--measure", name, *(["--quick"] if arguments.quick else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = {"shards": shards, "position": position, **json.loads(done.stdout)}
    if not arguments.quick:
        write_json(RESULTS / "seek.json", {**result, "machine": machine()})
    print(json.dumps(result))


if __name__ == "__main__":
    main()
