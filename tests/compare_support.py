"""Run directories as chains and sweeps leave them, many at once, with hostile text wherever text comes from data."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.schema import RunConfig
from pipeline.tracking.jsonl import Point, _encode
from tests.report_support import HOSTILE, HUGE

SECTIONS = ("classification", "retrieval", "worst_group")
MANIFEST = {
    "fingerprint": "5eed" * 16, "title": "Drawn scenes " + HUGE, "corpus": "demo", "rows_read": 6420, "rows": 6354,
    "ok": 5890, "samples": 5890, "dropped": {"duplicate": 66}, "outcomes": {"ok": 5890, "http_404": 400, HOSTILE: 64},
}  # fmt: skip


def fabricate_member(
    folder: Path,
    objective: str = "neuclip",
    seed: int = 0,
    tasks: int = 3,
    level: float = 0.5,
    steps: int = 200,
    batch: int = 64,
    gpus: int = 8,
    **changes: Any,
) -> Path:
    """One finished run. level: its mean score; each task's is that, an offset of the task, and noise of the seed."""
    rng = random.Random(f"{objective} {seed}")
    config = RunConfig.model_validate(
        {
            "name": "demo", "description": HUGE, "objective": objective, "seed": seed, "corpus": {"name": "demo"},
            "train": {"global_batch_size": batch, "steps": steps}, **changes,
        }
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    points = _points(rng, objective, steps, batch, gpus)
    (folder / "train").mkdir()
    (folder / "train" / "metrics.jsonl").write_bytes(b"".join(map(_encode, points)))
    last = points[-1]
    _write(folder / "train" / "summary.json", {
        "steps": steps, "samples_seen": last.samples_seen, "final_loss": last.metrics["train/loss"],
        "train_seconds": last.samples_seen / 400, "gpu_hours": gpus * last.samples_seen / 400 / 3600, "cpu_hours": 0.0,
        "samples_per_second": 400.0, "world_size": gpus, "order_digest": f"{seed:064x}",
        "manifest_fingerprint": MANIFEST["fingerprint"],
    })  # fmt: skip
    weights = f"{rng.getrandbits(256):064x}"
    _write(folder / "model" / "export.json", {"checkpoint": f"step-{steps:08d}", "weights_sha256": weights})
    _results(folder / "results", rng, weights, tasks, level)
    return folder


def fabricate_sweep(root: Path, groups: dict[str, float], seeds: int, **options: Any) -> Path:
    """ROOT/members/objective=NAME,seed=N, with one corpus for all. groups: level of each objective."""
    for objective, level in groups.items():
        for seed in range(seeds):
            member = root / "members" / f"objective={objective},seed={seed}"
            fabricate_member(member, objective, seed, level=level, **options)
    _write(root / "corpora" / "demo" / "manifest.json", MANIFEST)
    _write(root / "environment.json", {"version": "0.1.0", "commit": "c0ffee+", "host": HOSTILE})
    return root


def _write(path: Path, value: Any) -> None:
    """Without a sync to disk: these are thousands of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _points(rng: random.Random, objective: str, steps: int, batch: int, gpus: int) -> list[Point]:
    points = []
    for step in range(2, steps + 1, 2):
        left = math.exp(-3 * step / steps)
        metrics = {
            "train/loss": (0.4 if objective == "neuclip" else 1.1) + 3 * left + rng.gauss(0, 0.06),
            "train/tau": 0.02 + 0.05 * left,
            "train/accuracy": min(1.0, 0.9 * (1 - left) + rng.gauss(0, 0.02)),
            "train/grad_norm": 0.5 + 2 * left + abs(rng.gauss(0, 0.1)),
            "train/samples_per_second": 400.0,
            "data/wait_share": 0.05,
            "ranks/count": float(gpus),
            "ranks/gpus": float(gpus),
            "train/epoch": step * batch / 5890,
        }
        if objective == "neuclip":
            metrics |= {"npn/share": 0.1, "npn/log_normalizer_mse": 0.02 + 6 * left**3}
        if step == steps // 4:
            metrics["train/loss"] = math.nan
        if step % 100 == 0:
            metrics["checkpoint/blocked_seconds"] = 0.2
        points.append(Point(step, step * batch, 1.7e9 + step, metrics))
    return points


def _results(folder: Path, rng: random.Random, weights: str, tasks: int, level: float) -> None:
    scores = {}
    for i in range(tasks):
        task, offset = f"task{i}", 0.25 * math.sin(i)
        score = min(0.99, max(0.01, level + offset + rng.gauss(0, 0.01)))
        title = "Retrieval " + HOSTILE if i == 1 else f"Task number {i}"
        common = {"title": title, "score": score, "chance": 0.01, "main_metric": "acc1"}
        scores[task] = common
        _write(folder / f"{task}.json", {
            **common, "task": task, "kind": SECTIONS[i * len(SECTIONS) // tasks], "n": 2000, "seconds": 3.5,
            "metrics": {"acc1": score}, "checkpoint_sha256": weights, "precision": "fp32", "code_version": "0.1.0+1",
            "task_hash": f"t{i}", "data_fingerprint": f"d{i}",
        })  # fmt: skip
    average = sum(entry["score"] for entry in scores.values()) / tasks
    _write(folder / "aggregate.json", {
        "checkpoint_sha256": weights, "tasks": tasks, "average": average, "scores": scores,
    })  # fmt: skip
