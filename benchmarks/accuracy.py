"""The objectives against each other: same towers, data, batch, steps and augmentation; each tuned as much as the rest.

    python benchmarks/accuracy.py tune      four settings per objective, two seeds, half the samples, tasks for tuning
    python benchmarks/accuracy.py run       the best setting of each, five seeds, tasks for reporting
    python benchmarks/accuracy.py --quick   two short runs: does it work?

Held-out drawing styles (name of the image among 1,879; retrieval both ways), held-out concepts, CIFAR-10 and groceries,
zero-shot, top-1 or recall@1 in percent. Every run is a line of benchmarks/results/accuracy_{tuning,runs}.jsonl as soon
as it ends; the same command goes on from there. `run` writes benchmarks/results/accuracy.json with means, standard
errors over seeds and what separates each objective from neuclip seed by seed (the seed fixes weights, order and
augmentation for all of them).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from lab.study import RESULTS, key, machine, mean_and_error, read, study
from lab.training import Trial
from pipeline.files import write_json

BATCH, SAMPLES, TUNING_SEEDS = 64, 102_400, (100, 101)
OURS = "neuclip"
NPN = {"prototypes": 1024, "restart_every": 100}


def fixed(tau: float) -> dict[str, Any]:
    return {"temperature": {"init": tau, "learnable": False}}


def learned(lr: float = 1e-3, **more: Any) -> dict[str, Any]:
    return {"temperature": {"lr": lr, **more}}


def npn(**options: Any) -> dict[str, Any]:
    return {"npn": {**NPN, **options}}


# Four each. What is not said is as published (METHOD) or the laboratory's.
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "openclip": [*(fixed(tau) for tau in (0.05, 0.07, 0.1)), learned()],
    "siglip": [
        *(learned(lr) for lr in (1e-3, 1e-2)),
        *({**learned(lr), "optimizer": {"lr": 2e-3}} for lr in (1e-3, 1e-2)),
    ],
    "fastclip": [
        *(fixed(tau) for tau in (0.05, 0.07)),
        *({**fixed(tau), "options": {"gamma_min": 0.6}} for tau in (0.05, 0.07)),
    ],
    "amorlip": [
        *(fixed(tau) for tau in (0.05, 0.07, 0.1)),
        {**fixed(0.07), "options": {"lambda_from": "ema"}},
    ],
    "neuclip": [
        {**fixed(0.05), "options": npn(lr=0.05)},
        {**fixed(0.05), "options": npn(lr=0.05, alpha_gradient="through")},
        *(
            {**fixed(0.05), "options": {"ratio_bound": bound, **npn(lr=0.001, alpha_gradient="through")}}
            for bound in (1.2, 1.05)
        ),
    ],
}


def trial(objective: str, settings: dict[str, Any], **more: Any) -> Trial:
    return Trial(objective=objective, batch_size=BATCH, **{"samples": SAMPLES, **settings, **more})


def score(result: dict[str, Any]) -> float:
    """The average over tasks of top-1 and recall@1; -inf of a run that diverged."""
    values = list(by_task(result["final"]).values())
    return statistics.mean(values) if values else float("-inf")


def by_task(point: dict[str, float]) -> dict[str, float]:
    return {key.removesuffix("_top1"): value for key, value in point.items() if key.endswith("_top1")}


def tuned(jobs: int | None) -> dict[str, dict[str, Any]]:
    """The best of CANDIDATES on the average over seeds, by objective: {settings, score, scores of all}."""
    trials = {
        f"{objective} {number} seed {seed}": trial(objective, settings, seed=seed, samples=SAMPLES // 2)
        for seed in TUNING_SEEDS
        for objective, candidates in CANDIDATES.items()
        for number, settings in enumerate(candidates)
    }
    results = study(RESULTS / "accuracy_tuning.jsonl", trials, jobs)
    chosen = {}
    for objective, candidates in CANDIDATES.items():
        scores = [
            statistics.mean(score(results[f"{objective} {number} seed {seed}"]) for seed in TUNING_SEEDS)
            for number in range(len(candidates))
        ]
        best = scores.index(max(scores))
        chosen[objective] = {"settings": candidates[best], "score": scores[best], "scores": scores}
    return chosen


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """runs: by objective, one result per seed from 0 on; those that diverged are counted, not averaged.

    Differences are over the seeds that both have.
    """
    table: dict[str, dict[str, Any]] = {}
    against = {}
    for objective, results in runs.items():
        whole = [result for result in results if "diverged" not in result]
        tasks = [by_task(result["final"]) for result in whole]
        table[objective] = {"seeds": len(results), "diverged": len(results) - len(whole)}
        if not whole:
            continue
        table[objective] |= {
            "average": mean_and_error([statistics.mean(t.values()) for t in tasks]),
            **{name: mean_and_error([t[name] for t in tasks]) for name in tasks[0]},
            "seconds": statistics.median(result["seconds"] for result in results),
        }
        if objective != OURS:
            pairs = [pair for pair in zip(runs[OURS], results, strict=False) if not any("diverged" in r for r in pair)]
            if pairs:
                against[objective] = mean_and_error([score(ours) - score(theirs) for ours, theirs in pairs])
    return {"table": table, "neuclip_minus": against}


def curves(runs: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, float]]]:
    """By objective: the average over tasks and seeds against samples and seconds."""
    drawn: dict[str, list[dict[str, float]]] = {}
    for objective, results in runs.items():
        whole = [result for result in results if "diverged" not in result]
        for points in zip(*([p for p in r["curve"] if by_task(p)] for r in whole), strict=True):
            drawn.setdefault(objective, []).append(
                {
                    "samples": points[0]["samples"],
                    "seconds": statistics.mean(p["seconds"] for p in points),
                    "average": statistics.mean(statistics.mean(by_task(p).values()) for p in points),
                    "loss": statistics.mean(p["loss"] for p in points),
                    "tau": statistics.mean(p["tau"] for p in points),
                }
            )
    return drawn


def quick() -> dict[str, Any]:
    """NeuCLIP and OpenCLIP for a hundred steps."""
    trials = {o: trial(o, CANDIDATES[o][1], samples=6_400, report=True) for o in ("openclip", OURS)}
    with tempfile.TemporaryDirectory() as folder:
        results = study(Path(folder) / "quick.jsonl", trials)
    return {objective: round(score(result), 2) for objective, result in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", choices=("tune", "run"), default="run")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=list(CANDIDATES), help="run these; the others as far as they are")
    parser.add_argument("--jobs", type=int, default=None, help="runs at once; default: the cores")
    arguments = parser.parse_args()
    if arguments.quick:
        print(json.dumps(quick()))
        return
    chosen = tuned(arguments.jobs)
    if arguments.stage == "tune":
        print(json.dumps(chosen))
        return
    trials = {
        (objective, seed): trial(objective, best["settings"], seed=seed, measure_accuracy=5, report=True)
        for seed in range(arguments.seeds)
        for objective, best in chosen.items()
    }
    wanted = arguments.only or list(chosen)
    labels = {f"{objective} seed {seed}": t for (objective, seed), t in trials.items() if objective in wanted}
    study(RESULTS / "accuracy_runs.jsonl", labels, arguments.jobs)
    done = read(RESULTS / "accuracy_runs.jsonl")
    keys = {o: [key(t) for (name, _), t in trials.items() if name == o] for o in chosen}
    runs = {o: [done[k] for k in itertools.takewhile(done.__contains__, keys[o])] for o in chosen}
    outcome = summary(runs)
    write_json(RESULTS / "accuracy.json", {**outcome, "curves": curves(runs), "tuning": chosen, "machine": machine()})
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
