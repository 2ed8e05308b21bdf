"""A manifest of a billion samples: written, opened as every rank opens it, and shared out to 4,096 ranks.

    python benchmarks/manifest.py [--quick]

100,000 shards of 10,000 samples (--quick: 1,000 shards), none of which exists: only the manifest is of interest. Each
step runs in a process of its own. Prints one JSON line: write_seconds, open_seconds (read and checked against its
fingerprint), shard_seconds (the order of samples, and of two steps of a global batch of 65,536 which shard and row each
of the 4,096 ranks reads), and the memory that each added, in MiB. distinct says that no two ranks read the same sample.
Writes benchmarks/results/manifest.json (not with --quick).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.manifest import read_manifest, write_manifest
from pipeline.data.order import SampleOrder
from pipeline.files import write_json

SHARDS, QUICK_SHARDS, SAMPLES_PER_SHARD = 100_000, 1_000, 10_000
RANKS, GLOBAL_BATCH, STEPS = 4_096, 65_536, 2


def write(folder: Path, shards: int) -> dict[str, Any]:
    rows = [_row(number) for number in range(shards)]
    with _Cost() as cost:
        write_manifest(folder, rows, {"title": "benchmark"})
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {"write_seconds": cost.seconds, "write_mib": cost.mib, "manifest_mib": round(size / 2**20, 1)}


def share_out(folder: Path, _: int) -> dict[str, Any]:
    with _Cost() as opening:
        manifest = read_manifest(folder)
    with _Cost() as sharding:
        order = SampleOrder(manifest.samples, seed=0)
        read = []
        for step in range(STEPS):
            for rank in range(RANKS):
                positions = np.arange(step * GLOBAL_BATCH + rank, (step + 1) * GLOBAL_BATCH, RANKS)
                in_shard, row = order.locate(positions)
                read.append(manifest.first_sample_index[in_shard] + row)
    samples = np.concatenate(read)
    return {
        "samples": manifest.total_samples,
        "open_seconds": opening.seconds,
        "open_mib": opening.mib,
        "shard_seconds": sharding.seconds,
        "shard_mib": sharding.mib,
        "milliseconds_per_rank_and_step": round(1000 * sharding.seconds / (RANKS * STEPS), 3),
        "distinct": len(np.unique(samples)) == len(samples) == STEPS * GLOBAL_BATCH,
    }


class _Cost:
    """seconds, and the memory (MiB) that the peak rose above what was in use before."""

    def __enter__(self) -> _Cost:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        self._before, self._started = _memory_kib("VmRSS"), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = round(time.perf_counter() - self._started, 3)
        self.mib = round((_memory_kib("VmHWM") - self._before) / 1024, 1)


def _memory_kib(name: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(f"{name}:"))


def _row(number: int) -> dict[str, Any]:
    digest = hashlib.sha256(b"%d" % number).hexdigest()
    return {
        "path": f"shards/{number:06d}-000.tar",
        "samples": SAMPLES_PER_SHARD,
        "bytes": 500_000_000 + number,
        "sha256": digest,
        "index_sha256": digest[::-1],
        "work_item": number,
        "attempt": 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 shards")
    parser.add_argument("--part", choices=("write", "share_out"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shards = QUICK_SHARDS if arguments.quick else SHARDS
    if arguments.part:
        print(json.dumps({"write": write, "share_out": share_out}[arguments.part](arguments.folder, shards)))
        return
    result: dict[str, Any] = {"shards": shards, "ranks": RANKS}
    with tempfile.TemporaryDirectory() as name:
        for part in ("write", "share_out"):
            command = [sys.executable, __file__, "--part", part, "--folder", name]
            command += ["--quick"] if arguments.quick else []
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            result.update(json.loads(done.stdout))
    if not arguments.quick:
        from lab.study import RESULTS, machine  # torch and more, which no part needs

        write_json(RESULTS / "manifest.json", {**result, "machine": machine()})
    print(json.dumps(result))


if __name__ == "__main__":
    main()
