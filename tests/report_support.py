"""A run directory as the stages leave it, with hostile text wherever text comes from data."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from data_prep.manifest import write_manifest
from data_prep.shard import Sample, index_path, write_shard
from pipeline.files import sha256_file, write_json
from pipeline.tracking.jsonl import JsonlTracker

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror=\"window.hacked = 1\"> & 'quotes'\n"
    "\u2028 ${x} {{ x }}"
)
HUGE = HOSTILE + "long" * 2500
STAGES = {
    "fabricate": 1, "plan": 1, "download": 4, "verify": 4, "manifest": 1, "train": 1, "export": 1,
    "evaluate": 1, "report": 1,
}  # fmt: skip
RUN_STARTED = 1_763_740_800.0
STEPS, BATCH = 600, 256
WEIGHTS = "c0ffee" * 10


def fabricate_run(run: Path, stages: dict[str, int] | None = None) -> Path:
    """Write a run directory in which `stages` (name: elements done) have run; all of them by default."""
    done = STAGES if stages is None else stages
    config = {
        "name": HOSTILE,
        "description": "A small CLIP on drawn scenes. " + HOSTILE,
        "seed": 7,
        "objective": "neuclip",
        "corpus": {"name": "demo"},
        "train": {"global_batch_size": BATCH, "steps": STEPS},
    }
    plan = {
        "recipe": HOSTILE,
        "fingerprint": "f" * 64,
        "config": config,
        "stages": [{"name": name, "needs": [], "elements": n} for name, n in STAGES.items()],
    }
    write_json(run / "plan.json", plan)
    for position, (name, elements) in enumerate(done.items()):
        for element in range(elements):
            write_json(run / f"stages/{name}.{element}.json", _marker(run, name, element, position))
    makers = {"manifest": _corpus, "train": _training, "export": _export, "evaluate": _results}
    for name, make in makers.items():
        if done.get(name):
            make(run)
    return run


def _marker(run: Path, stage: str, element: int, position: int) -> dict[str, Any]:
    return {
        "stage": stage,
        "element": element,
        "status": "done",
        "started_at": RUN_STARTED + 60 * position,
        "seconds": 12.5 * (position + 1),
        "command": [sys.executable, "-m", "pipeline", stage, f"{run}/a folder", HOSTILE],
        "outputs": {"plan.json": "a" * 64},
    }


def _corpus(run: Path) -> None:
    folder = run / "corpora" / "demo"
    path = folder / "shards" / "00000-000.tar"
    write_shard(path, [_sample(i) for i in range(40)])
    row = {
        "path": "shards/00000-000.tar", "samples": 40, "bytes": path.stat().st_size,
        "sha256": sha256_file(path), "index_sha256": sha256_file(index_path(path)), "work_item": 0, "attempt": 1,
    }  # fmt: skip
    outcomes = {"ok": 5890, "http_404": 214, "opt_out": 97, "timeout": 80, "not_an_image": 61, HOSTILE: 12}
    totals = {
        "title": "Drawn scenes " + HOSTILE, "licence": "CC0-1.0", "source": "drawn", "rows_read": 6420,
        "dropped": {"duplicate": 60, "bad_url": 6}, "rows": 6354, "ok": 5890, "outcomes": outcomes,
    }  # fmt: skip
    write_manifest(folder, [row], totals)


def _sample(i: int) -> Sample:
    shapes = ("ellipse", "rectangle")
    colours = ("firebrick", "royalblue", "seagreen", "goldenrod", "slateblue")
    image = Image.new("RGB", (96 + 8 * (i % 5), 96), ("gainsboro", "lavender", "beige")[i % 3])
    draw = ImageDraw.Draw(image)
    getattr(draw, shapes[i % 2])((12 + i % 7 * 4, 20, 56 + i % 7 * 4, 64), fill=colours[i % 5])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    content = b"not an image" if i == 39 else stream.getvalue()
    caption = HUGE if i == 0 else f"a {colours[i % 5]} {shapes[i % 2]} on a plain background, number {i}"
    return Sample(f"{i:032x}", content, "png", caption, {})


def _training(run: Path) -> None:
    tracker = JsonlTracker(run / "train" / "metrics.jsonl")
    for step in range(10, STEPS + 1, 10):
        decay, ripple = math.exp(-step / 150), math.sin(step / 17)
        metrics = {
            "train/loss": math.nan if step == 300 else 0.4 + 5 * decay + 0.08 * ripple,
            "train/tau": 0.02 + 0.05 * decay,
            "train/grad_norm": 0.5 + 2 * decay + 0.1 * ripple,
            "train/samples_per_second": 410 + 25 * ripple,
            "npn/share": 0.11 + 0.01 * ripple,
            "data/wait_share": 0.03 + 0.02 * abs(ripple),
        }
        if step % 50 == 0:
            mse = 0.02 + 6 * math.exp(-step / 90)
            metrics |= {"npn/log_normalizer_mse": mse, "npn/log_normalizer_mse_se": mse / 6}
        tracker.log(metrics, step, BATCH * step)
    tracker.close("finished")
    summary = {
        "steps": STEPS, "samples_seen": STEPS * BATCH, "final_loss": 0.4612, "tau": 0.0209,
        "log_normalizer_mse": 0.0276, "log_normalizer_mse_se": 0.004, "samples_per_second": 412.0,
        "npn_share": 0.11, "data_wait_share": 0.04, "order_digest": "0d" * 32, "world_size": 2,
    }  # fmt: skip
    write_json(run / "train" / "summary.json", summary)
    runs = {"ingest": "1" * 32, "train": "2" * 32, "evaluate": "3" * 32}
    uri = f"sqlite:///{run}/mlflow.db"
    ids = {"tracking_uri": uri, "experiment": "neuclip", "parent_run_id": "0" * 32, "runs": runs}
    write_json(run / "mlflow.json", ids)


def _export(run: Path) -> None:
    write_json(run / "model" / "export.json", {"checkpoint": "step-00000600", "weights_sha256": WEIGHTS})


def _results(run: Path) -> None:
    scores = (
        ("scenes_unseen", "classification", "acc1", 0.6125, 0.0417, "Unseen combinations"),
        ("scenes_retrieval", "retrieval", "mean_recall_at_1", 0.2031, 0.0010, "Retrieval " + HOSTILE),
        ("scenes_groups", "worst_group", "acc_wg", 0.4333, 0.125, "Worst background"),
    )
    for task, kind, metric, score, chance, title in scores:
        result = {
            "task": task, "title": title, "kind": kind, "main_metric": metric, "score": score,
            "chance": chance, "metrics": {metric: score}, "n": 960, "seconds": 4.2, "checkpoint_sha256": WEIGHTS,
        }  # fmt: skip
        write_json(run / "results" / f"{task}.json", result)
    average = sum(score for *_, score, _, _ in scores) / 3
    write_json(run / "results" / "aggregate.json", {
        "checkpoint_sha256": WEIGHTS, "tasks": 3, "average": average,
        "scores": {task: {"score": score} for task, _, _, score, _, _ in scores},
    })  # fmt: skip
