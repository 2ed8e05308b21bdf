"""`data-prep plan` on fabricated metadata: rows per second, peak memory, and whether time grows with the rows alone.

    python benchmarks/plan.py [--quick] [--rows 1000000 10000000 ...]

Fabricates Parquet files of a million rows each (URL and caption of about 150 bytes together; one row in ten repeats an
earlier one, one in fifty has no caption), and plans each number of rows into 64 work items, in a process of its own.
Prints one JSON line: for the largest number of rows, rows_per_second, and peak_mib (resident, all of the process);
slope_ratio_10x, CPU seconds per row there over those at a tenth (1: time is linear); cpu_hours_per_billion_rows,
had from the slope between the two. Writes benchmarks/results/plan.json (not with --quick: 100,000 and 1,000,000 rows).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.corpus import Corpus, CorpusDefinition
from data_prep.plan import make_plan
from pipeline.files import write_json

ROWS, QUICK_ROWS, FILE_ROWS, TASKS = (1_000_000, 10_000_000), (100_000, 1_000_000), 1_000_000, 64
WORDS = pa.array(
    ["a", "photo", "of", "old", "red", "house", "on", "a", "hill", "with", "two", "dogs", "and", "trees", "at", "dawn"]
)


def fabricate(folder: Path, rows: int) -> None:
    """`rows` rows in files of FILE_ROWS; every tenth row is the row before it, half a million rows on."""
    (folder / "metadata").mkdir(parents=True)
    for start in range(0, rows, FILE_ROWS):
        numbers = np.arange(start, min(start + FILE_ROWS, rows))
        numbers = np.where((numbers % 10 == 9) & (numbers > rows // 2), numbers - rows // 2, numbers)
        text = pc.cast(pa.array(numbers), pa.string())
        shuffled = pc.cast(pa.array(numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)), pa.string())
        hosts = pc.cast(pa.array(numbers % 99_991), pa.string())
        urls = pc.binary_join_element_wise(
            "https://images", hosts, ".example.com/media/", shuffled, "/", text, ".jpg", ""
        )
        words = [WORDS.take(pa.array((numbers >> place) % len(WORDS))) for place in range(12)]
        captions = pc.binary_join_element_wise(*words, text, " ")
        captions = pc.if_else(pa.array(numbers % 50 == 0), pa.scalar(None, pa.string()), captions)
        table = pa.table({"url": urls, "caption": captions, "similarity": (numbers % 1000) / 1000})
        pq.write_table(table, folder / f"metadata/{start:012d}.parquet", compression="zstd", row_group_size=1 << 17)


def measure(folder: Path) -> dict[str, float]:
    """For a process of its own."""
    definition = CorpusDefinition(name="benchmark", title="Benchmark", licence="CC0-1.0")
    started, cpu = time.perf_counter(), time.process_time()
    plan, _ = make_plan(Corpus(folder, definition), tasks=TASKS, samples_per_shard=10_000)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return {
        "rows": plan.rows_read,
        "planned": plan.rows_planned,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "rows_per_second": round(plan.rows_read / seconds),
        "peak_mib": round(peak / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS[0]:,} and {QUICK_ROWS[1]:,} rows")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="numbers of rows, each ten times the last")
    parser.add_argument(
        "--folder", type=Path, help="where to fabricate; 0.3 GB per million rows  [default: a temporary]"
    )
    parser.add_argument("--measure", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    runs = []
    for rows in QUICK_ROWS if arguments.quick else arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            fabricate(Path(name), rows)
            command = [sys.executable, __file__, "--measure", name]
            runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    small, large = runs[-2:]
    slope = (large["cpu_seconds"] - small["cpu_seconds"]) / (large["rows"] - small["rows"])
    result = {
        "rows_per_second": large["rows_per_second"],
        "peak_mib": max(run["peak_mib"] for run in runs),
        "slope_ratio_10x": round(large["cpu_seconds"] / large["rows"] * small["rows"] / small["cpu_seconds"], 3),
        "cpu_hours_per_billion_rows": round(slope * 1e9 / 3600, 2),
    }
    if not arguments.quick:
        from lab.study import RESULTS, machine  # loads torch, which the measured process does without

        write_json(RESULTS / "plan.json", {**result, "runs": runs, "tasks": TASKS, "machine": machine()})
    print(json.dumps(result))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
