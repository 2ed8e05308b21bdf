"""What a training came to: RUN/train/summary.json."""

from __future__ import annotations

import statistics
from typing import Any

from pipeline.time_spent import total_time
from pipeline.tracking.jsonl import of_steps, read_points
from pipeline.trainer import METRICS, Trainer


def summarise(trainer: Trainer) -> dict[str, Any]:
    """Its content, from the metrics that the run logged in all of its lives."""
    series: dict[str, list[float]] = {}
    points = of_steps(read_points(trainer.folder / METRICS))
    for point in points:
        for name, value in point.metrics.items():
            series.setdefault(name, []).append(value)

    def last(name: str) -> float | None:
        return series[name][-1] if name in series else None

    def median(name: str) -> float | None:
        return statistics.median(series[name]) if name in series else None

    return {
        "steps": trainer.progress.step,
        "samples_seen": trainer.progress.samples_seen,
        "epochs": trainer.progress.samples_seen / len(trainer.corpus),
        "final_loss": last("train/loss"),
        "tau": last("train/tau"),
        "log_normalizer_mse": last("npn/log_normalizer_mse"),
        "log_normalizer_mse_se": last("npn/log_normalizer_mse_se"),
        "samples_per_second": median("train/samples_per_second"),
        "npn_share": median("npn/share"),
        "data_wait_share": median("data/wait_share"),
        **total_time(points)._asdict(),
        "order_digest": trainer.progress.order_digest,
        "manifest_fingerprint": trainer.corpus.fingerprint,
        "objective": trainer.config.objective,
        "world_size": trainer.world.size,
    }
