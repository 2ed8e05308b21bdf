"""What each part of NeuCLIP is worth: METHOD's ablations and what goes beyond the paper, on real images.

    python benchmarks/ablations.py [--quick] [--seeds 3] [--only NAME ...]

Every variant is NeuCLIP at the centre of benchmarks/normalizer_error.py (tau = 0.05, B = 64, M = 1024, T_r = 100,
T_u = 10) with one thing changed, or what its name says. Measured: the log-normalizer error over the whole training set
(median of the second half of the run), the average over the tasks for tuning, tau at the end, and seconds. Each run is
a line of benchmarks/results/ablations.jsonl as soon as it ends; the same command goes on from there and writes
ablations.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from accuracy import NPN, score
from lab.study import RESULTS, machine, mean_and_error, study
from lab.training import Trial
from normalizer_error import error
from pipeline.files import write_json

SAMPLES = 51_200
PUBLISHED: dict[str, dict[str, Any]] = {
    "neuclip": {},
    "separate fit": {"npn": {"fit": "separate"}},
    "MLP": {"npn": {"network": "mlp", "lr": 0.005}},
    **{f"T_r {t}": {"npn": {"restart_every": t}} for t in (20, 500, None)},
    **{f"T_u {t}": {"npn": {"inner_steps": t}} for t in (1, 5, 20, 50)},
    "simultaneous": {"updates": "simultaneous", "npn": {"inner_steps": 1}},
    "alpha through": {"npn": {"alpha_gradient": "through"}},
}
BEYOND: dict[str, dict[str, Any]] = {
    **{f"npn lr {lr}": {"npn": {"lr": lr}} for lr in (0.3, 0.001)},
    "accumulator 1e-6": {"npn": {"accumulator_init": 1e-6}},
    "ratio bound 1.2": {"ratio_bound": 1.2},
    "alpha through, npn lr 0.001": {"npn": {"alpha_gradient": "through", "lr": 0.001}},
    "neuclip-plus": {"ratio_bound": 1.2, "npn": {"alpha_gradient": "through", "lr": 0.001}},
    **{f"tau learned, rho {rho}": {"rho": rho} for rho in (3.0, 4.0, 5.0)},
}
VARIANTS = PUBLISHED | BEYOND


def trial(name: str, seed: int, samples: int = SAMPLES) -> Trial:
    options = {**VARIANTS[name], "npn": {**NPN, **VARIANTS[name].get("npn", {})}}
    return Trial(
        objective="neuclip",
        options=options,
        temperature={"lr": 1e-3} if "tau learned" in name else {"init": 0.05, "learnable": False},
        samples=samples,
        seed=seed,
        measure_error=4,
        measure_accuracy=1,
    )


def row(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One result per seed."""
    return {
        "mse": mean_and_error([error(result) for result in results]),
        "average": mean_and_error([score(result) for result in results]),
        "tau": round(statistics.mean(result["final"]["tau"] for result in results), 4),
        "seconds": round(statistics.median(result["seconds"] for result in results), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two variants, a hundred steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--jobs", type=int, default=None, help="runs at once; default: the cores")
    arguments = parser.parse_args()
    if arguments.quick:
        trials = {name: trial(name, 0, samples=6_400) for name in ("neuclip", "separate fit")}
        with tempfile.TemporaryDirectory() as folder:
            results = study(Path(folder) / "quick.jsonl", trials, arguments.jobs)
        print(json.dumps({name: round(error(result), 3) for name, result in results.items()}))
        return
    labels = {(name, seed): f"{name}, seed {seed}" for seed in range(arguments.seeds) for name in arguments.only}
    trials = {label: trial(name, seed) for (name, seed), label in labels.items()}
    results = study(RESULTS / "ablations.jsonl", trials, arguments.jobs)
    table = {name: row([results[labels[name, seed]] for seed in range(arguments.seeds)]) for name in arguments.only}
    if arguments.only == list(VARIANTS):
        write_json(RESULTS / "ablations.json", {"table": table, "machine": machine()})
    print(json.dumps(table))


if __name__ == "__main__":
    main()
