"""What the guards cost: images per second of a guarded shard against plain img2dataset, same settings, same server.

    python benchmarks/download.py [--quick]

A server process on this machine serves JPEGs of 480 x 360 pixels. Shards of them are downloaded in turns, each in a
fresh process, by img2dataset as it comes and with every guard of `data_prep` on (guarded fetch, decoder and writer,
early stop). Prints one JSON line: plain and guarded {images_per_second, cpu_ms_per_image} (medians of the turns; CPU
of the downloading process alone), ratio, the median over the turns of guarded by plain speed, and load, the machine's
(processes that want to run, the average of the minute before). Writes benchmarks/results/download.json (not with
--quick, which prints the ratio alone).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from data_prep.corpus import Fetch, Images
from data_prep.download import Shard, run_img2dataset
from data_prep.rows import ROW_SCHEMA
from data_prep.watch import UNSTATED_YIELD, Watch
from pipeline.files import write_json

PICTURES, IMAGES, QUICK_IMAGES, WARM_UP = 64, 2000, 300, 50
TURNS, QUICK_TURNS = 6, 4
THREADS = 16


def draw(folder: Path) -> None:
    """Smooth noise: JPEGs of about 72 kB."""
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 255, (90, 120, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).resize((480, 360), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=85)
        (folder / f"{number}.jpg").write_bytes(stream.getvalue())


def measure(kind: str, url: str, images: int) -> dict[str, float]:
    """For a process of its own: one shard, after a small one that loads what has to be loaded."""
    with tempfile.TemporaryDirectory() as name:
        _download(Path(name), 0, kind, url, WARM_UP)
        began, used = time.perf_counter(), _cpu_seconds()
        _download(Path(name), 1, kind, url, images)
        seconds, cpu = time.perf_counter() - began, _cpu_seconds() - used
    return {"images_per_second": images / seconds, "cpu_ms_per_image": cpu / images * 1000}


def _download(folder: Path, number: int, kind: str, url: str, images: int) -> None:
    rows = {"uid": [f"{n:032x}" for n in range(images)], "url": [f"{url}/{n % PICTURES}.jpg" for n in range(images)]}
    table = pa.table({**rows, "caption": ["a picture"] * images}, schema=ROW_SCHEMA)
    with pa.ipc.new_file(str(folder / f"{number}.arrow"), table.schema) as writer:
        writer.write_table(table)
    fetch = Fetch(threads=THREADS, connections_per_host=THREADS, allow_private=True)
    shard = Shard(folder, number, folder / f"{number}.arrow", images, Images(image_size=256), fetch, UNSTATED_YIELD)
    assert run_img2dataset(shard, Watch(UNSTATED_YIELD) if kind == "guarded" else None)
    assert json.loads((folder / f"{number:05d}_stats.json").read_text())["successes"] == images


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def compare(images: int, turns: int) -> dict[str, Any]:
    results: dict[str, list[dict[str, float]]] = {"plain": [], "guarded": []}
    with tempfile.TemporaryDirectory() as name:
        draw(Path(name))
        serve = [sys.executable, "-m", "data_prep", "serve", name]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = server.stdout.readline().split(" at ")[1].split()[0]
            for turn in range(turns):
                for kind in sorted(results, reverse=bool(turn % 2)):  # neither is always the second
                    command = [sys.executable, __file__, "--measure", kind, url, str(images)]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    results[kind].append(json.loads(done.stdout.splitlines()[-1]))
            server.terminate()
    ratios = [
        guarded["images_per_second"] / plain["images_per_second"]
        for plain, guarded in zip(results["plain"], results["guarded"], strict=True)
    ]
    medians = {
        kind: {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}
        for kind, runs in results.items()
    }
    return {"images": images, "threads": THREADS, **medians, "ratio": round(statistics.median(ratios), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images; prints the ratio alone")
    parser.add_argument("--measure", nargs=3, metavar=("KIND", "URL", "IMAGES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, url, images = arguments.measure
        print(json.dumps(measure(kind, url, int(images))))
        return
    load = round(os.getloadavg()[0], 1)
    result = compare(QUICK_IMAGES, QUICK_TURNS) if arguments.quick else compare(IMAGES, TURNS)
    if arguments.quick:
        print(json.dumps({"ratio": result["ratio"]}))
        return
    from lab.study import RESULTS, machine  # loads torch, which no measured process should

    write_json(RESULTS / "download.json", {**result, "load": load, "machine": machine()})
    print(json.dumps({**result, "load": load}))


if __name__ == "__main__":
    main()
