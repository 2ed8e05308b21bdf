"""How the options of NeuCLIP's network were chosen: many of them on one recorded training run.

    python benchmarks/npn_replay.py [--samples 102400] [--jobs 2] [--only NAME ...]

One run of the laboratory (neuclip, tau = 0.05, B = 64) is recorded: the embeddings of every batch and, at moments along
the run, 512 anchors with the truth over the whole training set. Every variant of the network is then trained on the
recorded batches alone, without the encoders, and its error measured at the same moments. That leaves out how a variant
changes the run itself (benchmarks/normalizer_error.py measures that), and takes seconds instead of minutes.

Writes benchmarks/results/npn_replay.json: the median mse of the second half, of the moments just after a restart and
of those before one, and milliseconds per step.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab.corpora import load
from lab.data import Corpus, sample
from lab.measures import encode_all
from lab.study import RESULTS, machine
from lab.training import EMBED_DIM, Trial, build, train_steps
from pipeline.config.objectives import LogNormalizerConfig
from pipeline.files import write_json
from pipeline.models.log_normalizer import Anchors, build_log_normalizer
from pipeline.objectives import Features
from pipeline.objectives.global_batch import anchor_statistics, gather

EPS, RATIO_BOUND, TAU = 1e-14, 1e3, 0.05
ANCHORS = 512
MOMENTS = 24  # not a divisor of T_r in steps: they fall at many distances from a restart


class Moment(NamedTuple):
    """features: (ANCHORS, D) each. truth: (2, ANCHORS), log(eps + g(S))."""

    features: Features
    truth: Tensor


class Recording(NamedTuple):
    """batches: (steps, 2, B, D), images then texts. moments: by the step before which they were taken."""

    batches: Tensor
    moments: dict[int, Moment]


def record(trial: Trial, corpus: Corpus) -> Recording:
    """Train as `trial` says and keep what the network saw."""
    batches: list[Tensor] = []
    moments: dict[int, Moment] = {}
    setup = build(trial, corpus)
    steps = trial.samples // trial.batch_size
    due = {round((i + 0.5) * steps / MOMENTS) for i in range(MOMENTS)}
    for step, output in train_steps(setup):
        batches.append(torch.stack(list(output.features)).to(torch.float16))
        if step in due:
            moments[step] = _moment(setup.module, corpus, step)
    return Recording(torch.stack(batches), moments)


def _moment(module: Any, corpus: Corpus, step: int) -> Moment:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        module.eval()
        everything = torch.arange(len(corpus.images))
        reference, tau, _ = encode_all(module, *sample(corpus, everything, generator))
        chosen = torch.randperm(len(everything), generator=generator)[:ANCHORS]
        features, _, _ = encode_all(module, *sample(corpus, chosen, generator))
        module.train()
        positive = (features.image * features.text).sum(-1)
        itself = chosen[:, None] == everything
        truth = []
        for anchor, opposite in ((features.image, reference.text), (features.text, reference.image)):
            h = ((anchor @ opposite.T - positive[:, None]) / tau).masked_fill_(itself, -torch.inf)
            truth.append(
                torch.logaddexp(h.logsumexp(dim=1) - math.log(len(everything) - 1), torch.tensor(math.log(EPS)))
            )
    return Moment(features, torch.stack(truth))


def replay(recording: Recording, options: dict[str, Any]) -> dict[str, Any]:
    """Train one variant on the recording. Returns {mse, early, late, seconds}: see the module."""
    config = LogNormalizerConfig(**options)
    npn = build_log_normalizer(config, EPS, RATIO_BOUND)
    npn.prepare(torch.device("cpu"), EMBED_DIM, seed=0)
    tau = torch.tensor([TAU])
    errors: dict[int, float] = {}
    seconds = 0.0
    for number, batch in enumerate(recording.batches, start=1):
        started = time.perf_counter()
        _step(npn, Features(*torch.nn.functional.normalize(batch.float(), dim=-1)), tau)
        seconds += time.perf_counter() - started
        if number in recording.moments:
            errors[number] = _error(npn, recording.moments[number], batch.shape[1], tau)
    later = [step for step in errors if step > len(recording.batches) // 2]
    every = config.restart_every or len(recording.batches)
    early = [errors[step] for step in later if step % every < every / 4]
    late = [errors[step] for step in later if step % every >= every * 3 / 4]
    return {
        "mse": statistics.median(errors[step] for step in later),
        "early": statistics.median(early) if early else None,
        "late": statistics.median(late) if late else None,
        "curve": {step: round(error, 3) for step, error in errors.items()},
        "ms_per_step": 1e3 * seconds / len(recording.batches),
    }


def _step(npn: Any, features: Features, tau: Tensor) -> Tensor:
    """alpha (2, B), as the objective's step uses it."""
    batch = gather(features)
    r = torch.logaddexp(anchor_statistics(batch, tau).log_g, torch.tensor(math.log(EPS)))
    npn.observe(batch.embeddings)
    alpha: Tensor = npn.step(Anchors(batch.embeddings, batch.positive, tau), r).alpha
    return alpha


def _error(npn: Any, moment: Moment, size: int, tau: Tensor) -> float:
    squares = []
    for start in range(0, ANCHORS, size):
        rows = slice(start, start + size)
        alpha = _step(copy.deepcopy(npn), Features(*(f[rows] for f in moment.features)), tau)
        squares.append((alpha - moment.truth[:, rows]).square())
    return float(torch.cat(squares, dim=1).mean())


BASE = {"prototypes": 1024, "restart_every": 100}
VARIANTS: dict[str, dict[str, Any]] = {
    "published, M 1024": BASE,
    **{f"lr {lr}": {**BASE, "lr": lr} for lr in (0.3, 0.02, 0.005, 0.001)},
    **{f"M {m}": {**BASE, "prototypes": m} for m in (256, 4096)},
    **{f"T_u {t}": {**BASE, "inner_steps": t} for t in (0, 1, 5, 20)},
    **{f"T_r {t}": {**BASE, "restart_every": t} for t in (20, 500, None)},
    "accumulator 1e-6": {**BASE, "accumulator_init": 1e-6},
    "separate": {**BASE, "fit": "separate"},
    "mlp": {"network": "mlp", "restart_every": 100, "lr": 0.005},
}


def _one(job: tuple[str, dict[str, Any], Recording]) -> tuple[str, dict[str, Any]]:
    torch.set_num_threads(1)
    name, options, recording = job
    return name, {"options": options, **replay(recording, options)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundred steps, two variants, one JSON line")
    parser.add_argument("--samples", type=int, default=102_400)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--recording", type=Path, help="keep the recording here, or use the one that is here")
    parser.add_argument("--only", nargs="*", help="variants by name")
    parser.add_argument("--options", type=json.loads, nargs="*", default=[], help="further variants, as JSON")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.samples, arguments.only = 6_400, ["published, M 1024", "lr 0.005"]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.recording or Path(folder) / "recording.pt"
        if not path.is_file():
            trial = Trial(
                objective="neuclip",
                options={"npn": BASE},
                temperature={"init": TAU, "learnable": False},
                samples=arguments.samples,
            )
            torch.save(tuple(record(trial, load(trial.corpus))), path)
        batches, moments = torch.load(path, weights_only=False)
    recording = Recording(batches, {k: Moment(*v) for k, v in moments.items()})
    variants = {name: VARIANTS[name] for name in arguments.only or VARIANTS} if not arguments.options else {}
    variants |= {json.dumps(options): options for options in arguments.options}
    jobs = [(name, options, recording) for name, options in variants.items()]
    results = {}
    with multiprocessing.get_context("fork").Pool(arguments.jobs) as pool:
        for name, result in pool.imap(_one, jobs):
            results[name] = result
            shown = {k: v if v is None else round(v, 3) for k, v in result.items() if k not in ("options", "curve")}
            print(f"{name}: {shown}", file=sys.stderr, flush=True)
    if arguments.quick:
        print(json.dumps({name: round(result["mse"], 3) for name, result in results.items()}))
    elif not arguments.only and not arguments.options:
        write_json(RESULTS / "npn_replay.json", {"variants": results, "machine": machine()})


if __name__ == "__main__":
    main()
