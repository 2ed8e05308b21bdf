"""Our `openclip` and `neuclip` objectives against `open_clip.loss.ClipLoss`: forward and backward, one process.

    python benchmarks/objectives.py [--quick]

Prints one JSON line: milliseconds per step (median), and how many times as fast as ClipLoss each of ours is. What
`neuclip` does beyond a loss (its network's inner steps) is in its time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss

from pipeline.objectives import Features, build_objective

DIMENSION = 512


def milliseconds(step: Callable[[], torch.Tensor], repeats: int) -> float:
    """Median time of one forward and backward, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        step().backward()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a batch of 256 instead of 1024")
    quick = parser.parse_args().quick
    batch, repeats = (256, 5) if quick else (1024, 10)
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(batch, DIMENSION), dim=-1).requires_grad_() for _ in range(2))
    logit_scale = torch.tensor([2.66], requires_grad=True)
    index = torch.arange(batch)
    theirs = ClipLoss()
    steps: dict[str, Callable[[], torch.Tensor]] = {"ClipLoss": lambda: theirs(image, text, logit_scale.exp())}
    for name in ("openclip", "neuclip"):
        objective = build_objective(name, {})
        objective.prepare(torch.device("cpu"), DIMENSION, 10 * batch, seed=0)
        steps[name] = lambda o=objective: o(Features(image, text), index, torch.exp(-logit_scale)).loss  # type: ignore[misc]
    times = {name: milliseconds(step, repeats) for name, step in steps.items()}
    ratios = {f"ratio_{name}": round(times["ClipLoss"] / times[name], 3) for name in ("openclip", "neuclip")}
    print(json.dumps({"batch": batch, "ms": {k: round(v, 2) for k, v in times.items()}, **ratios}))


if __name__ == "__main__":
    main()
