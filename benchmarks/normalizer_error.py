"""How far the normalizers that each objective uses lie from the truth, at fixed temperature, on real images.

    python benchmarks/normalizer_error.py [--quick] [--seeds 3] [--jobs 2]

The measure is METHOD's: mse = mean_i (alpha_used[i] - log(eps + g_i(S)))^2 over anchors and both sides, S the whole
training set at the current weights; the median of the measurements in the second half of a run. openclip uses the
batch's own estimate, fastclip (v3) log(eps + u), amorlip its lambda, neuclip alpha. Runs differ in objective, tau,
batch size B and dataset size N; all see the same number of samples.

Every run is a line of benchmarks/results/normalizer_error.jsonl as soon as it ends; the same command goes on from
there. `--quick` is one seed of a short run at B = 64, tau = 0.05, and prints one JSON line:
{"mse": {objective: ..}, "ratio_fastclip": fastclip's / neuclip's, "ratio_openclip": ..}.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from lab.study import RESULTS, machine, mean_and_error, study
from lab.training import Trial
from pipeline.files import write_json

# lr: the best of 0.3, 0.05, 0.005 and 0.001 by benchmarks/npn_replay.py; M and T_r scaled to a corpus of 6,815 images.
NEUCLIP = {"npn": {"prototypes": 1024, "restart_every": 100, "lr": 0.001}}
OPTIONS: dict[str, dict[str, Any]] = {"openclip": {}, "fastclip": {}, "amorlip": {}, "neuclip": NEUCLIP}
TAUS, BATCHES, SHARES = (0.03, 0.05, 0.07), (32, 64, 128, 256), (0.1, 1.0)
CENTRE = (0.05, 64, 1.0)  # tau, B, share of N
SAMPLES = 51_200
MEASUREMENTS = 6
Setting = tuple[float, int, float]


def trial(objective: str, setting: Setting, seed: int, samples: int = SAMPLES) -> Trial:
    tau, batch_size, share = setting
    return Trial(
        objective=objective,
        options=OPTIONS[objective],
        temperature={"init": tau, "learnable": False},
        batch_size=batch_size,
        samples=samples,
        share=share,
        seed=seed,
        measure_error=MEASUREMENTS,
        measure_accuracy=0,
    )


def error(result: dict[str, Any]) -> float:
    """The median of the second half of the run's measurements; inf of a run that diverged."""
    if "diverged" in result:
        return math.inf
    errors = [point["mse"] for point in result["curve"] if "mse" in point]
    return statistics.median(errors[len(errors) // 2 :])


def settings(full: bool) -> list[Setting]:
    """The centre and what differs from it in one respect, in the order of how much hangs on it; full: all."""
    every = [(tau, batch, share) for tau in TAUS for batch in BATCHES for share in SHARES]
    tau, batch, share = CENTRE
    first = [CENTRE, (tau, 2 * batch, share), (tau, batch, 0.1)]
    near = [s for s in every if sum(a != b for a, b in zip(s, CENTRE, strict=True)) <= 1]
    return list(dict.fromkeys([*first, *near, *(every if full else [])]))


def quick(jobs: int | None) -> dict[str, Any]:
    """One short seed at the centre."""
    trials = {o: trial(o, CENTRE, 0, samples=12_800) for o in OPTIONS}
    with tempfile.TemporaryDirectory() as folder:
        results = study(Path(folder) / "quick.jsonl", trials, jobs)
    return ratios({objective: error(result) for objective, result in results.items()})


def ratios(mse: dict[str, float]) -> dict[str, Any]:
    """The errors, and how many times NeuCLIP's each rival's is."""
    rivals = {f"ratio_{o}": round(mse[o] / mse["neuclip"], 2) for o in mse if o != "neuclip"}
    return {"mse": {objective: round(value, 3) for objective, value in mse.items()}, **rivals}


def summary(table: dict[Setting, dict[str, list[float]]]) -> dict[str, Any]:
    """Means and standard errors over seeds; what halving B and ten times N add, against FastCLIP."""

    def mean(setting: Setting, objective: str) -> float:
        return statistics.mean(table[setting][objective])

    tau, batch, share = CENTRE
    added = {
        objective: {
            "halving_batch": mean(CENTRE, objective) - mean((tau, 2 * batch, share), objective),
            "ten_times_dataset": mean(CENTRE, objective) - mean((tau, batch, 0.1), objective),
        }
        for objective in OPTIONS
    }
    rows = [
        {"tau": s[0], "batch": s[1], "share": s[2], "objective": o, **mean_and_error(v)}
        for s, by_objective in table.items()
        for o, v in by_objective.items()
    ]
    return {**ratios({o: mean(CENTRE, o) for o in OPTIONS}), "added": added, "table": rows, "machine": machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short run per objective, a few minutes")
    parser.add_argument("--full", action="store_true", help="every combination of tau, B and N, not one at a time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=None, help="runs at once; default: the cores")
    arguments = parser.parse_args()
    if arguments.quick:
        print(json.dumps(quick(arguments.jobs)))
        return
    trials = {
        (setting, objective, seed): trial(objective, setting, seed)
        for setting in settings(arguments.full)
        for seed in range(arguments.seeds)
        for objective in OPTIONS
    }
    results = study(RESULTS / "normalizer_error.jsonl", {str(label): t for label, t in trials.items()}, arguments.jobs)
    table: dict[Setting, dict[str, list[float]]] = {}
    for setting, objective, seed in trials:
        value = error(results[str((setting, objective, seed))])
        table.setdefault(setting, {}).setdefault(objective, []).append(value)
    outcome = summary(table)
    write_json(RESULTS / "normalizer_error.json", outcome)
    json.dump({key: value for key, value in outcome.items() if key != "table"}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
