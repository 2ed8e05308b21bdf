"""What is to be known of metrics by their names: how those that people look at are shown, how steps become a point."""

from __future__ import annotations

from typing import Literal, NamedTuple

Reduction = Literal["mean", "last", "sum"]


class Metric(NamedTuple):
    """label: in a line of numbers. form: of a value there, as `format` takes it. title, unit: of its curve.

    note: what to bear in mind when comparing runs by it. share: it lies between 0 and 1. error: the metric that is
    its standard error.
    """

    label: str
    form: str
    title: str
    unit: str
    note: str = ""
    share: bool = False
    error: str = ""


# Those that the console, `watch` and the pages show. All others are in the spool.
METRICS = {
    "train/loss": Metric(
        "loss", ".4f", "Loss", "training objective", "Losses of different objectives have different scales."
    ),
    "train/tau": Metric("tau", ".4f", "Temperature", "tau"),
    "train/lr": Metric("lr", ".2e", "Learning rate", "of the towers"),
    "train/grad_norm": Metric("gradient norm", ".3f", "Gradient norm", "before clipping"),
    "train/accuracy": Metric(
        "accuracy", ".4f", "Accuracy within a batch", "share of pairs",
        "Among the pairs of a rank: more of them are harder.", share=True,
    ),
    "train/samples_per_second": Metric("samples/s", ",.0f", "Throughput", "samples per second"),
    "npn/log_normalizer_mse": Metric(
        "log-normalizer error", ".4f", "Log-normalizer error", "mean square", error="npn/log_normalizer_mse_se"
    ),
    "npn/share": Metric("NPN", ".1%", "Time of the NPN", "share of a step", share=True),
    "data/wait_share": Metric("waiting for data", ".1%", "Waiting for data", "share of a step", share=True),
}  # fmt: skip
# What training comes to in them: key of train/summary.json -> metric.
FINAL = {
    "final_loss": "train/loss",
    "tau": "train/tau",
    "samples_per_second": "train/samples_per_second",
    "log_normalizer_mse": "npn/log_normalizer_mse",
    "npn_share": "npn/share",
}

# How the values of the steps between two log points become one. All others: their mean.
_REDUCTIONS: dict[str, Reduction] = {
    "train/tau": "last",
    "train/lr": "last",
    "train/lr_temperature": "last",
    "npn/restarts": "last",
    "train/skipped_steps": "sum",
    "data/empty_captions": "sum",
    "health/warnings": "sum",
    "checkpoint/seconds": "sum",
    "checkpoint/blocked_seconds": "sum",
    "checkpoint/failures": "sum",
}


def reduction_of(name: str) -> Reduction:
    """How the values of the metric `name` become a point's."""
    return "last" if name.startswith("data/samples/") else _REDUCTIONS.get(name, "mean")
