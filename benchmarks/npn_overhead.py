"""What NeuCLIP's normalizer-prediction network costs: its share of a training step, its memory, its bytes.

    python benchmarks/npn_overhead.py [--quick]

Share: `npn_seconds / step_seconds` of whole training steps (forward, NeuCLIP, backward, AdamW) of open_clip's ViT-B-32
on random images and tokens, M = 4096, T_u = 10. On a CPU: fp32, batch 32, all cores. Where CUDA is available: bf16
autocast, batch 512; that path has not been run yet.

Parallel: our prototype-parallel NPN against the straightforward one, in which every rank holds all M prototypes,
evaluates its own anchors in autograd and all-reduces 2*M*D gradient floats in each inner step. gloo ranks with one
thread each, 32 anchors per rank, D = 512, T_u = 10; seconds are those of the slowest rank, bytes what a rank sends.

Prints one JSON line. --quick: 2 ranks and the one share, within minutes on 2 cores. Without it also M in {1024, 4096,
16384, 65536} and T_u in {1, 10}, and 1, 2 and 4 ranks, written to benchmarks/results/npn_overhead.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from pipeline.collectives import all_gather, all_reduce, count_bytes
from pipeline.config.objectives import LogNormalizerConfig
from pipeline.distributed import init, rank, shutdown, world_size
from pipeline.models.log_normalizer import Anchors, PrototypeNetwork
from pipeline.objectives import Features, build_objective
from pipeline.objectives.base import Objective

RESULTS = Path(__file__).parent / "results" / "npn_overhead.json"
DIMENSION, PROTOTYPES, INNER_STEPS, ANCHORS, TAU, EPS = 512, 4096, 10, 32, 0.07, 1e-14
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH, DTYPE = (512, torch.bfloat16) if DEVICE.type == "cuda" else (32, torch.float32)


def training_step(repeats: int) -> dict[str, float]:
    """Median seconds of a whole training step and of the NPN in it, after one to warm up."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32", device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    objective = build_objective("neuclip", {"npn": {"prototypes": PROTOTYPES, "inner_steps": INNER_STEPS}})
    objective.prepare(DEVICE, DIMENSION, 10 * BATCH, seed=0)
    seconds = [one_step(model, optimizer, objective) for _ in range(repeats + 1)][1:]
    step, npn = (statistics.median(series) for series in zip(*seconds, strict=True))
    return {"step_seconds": step, "npn_seconds": npn, "npn_share": npn / step}


def one_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, objective: Objective) -> tuple[float, float]:
    """Seconds of the step, and of the NPN."""
    images = torch.randn(BATCH, 3, 224, 224, device=DEVICE)
    tokens = torch.randint(1, 49408, (BATCH, 77), device=DEVICE)
    spent: dict[str, float] = {}
    network: Any = objective.npn
    network.step = timed(type(network).step.__get__(network), spent)
    started = now()
    with torch.autocast(DEVICE.type, dtype=DTYPE, enabled=DEVICE.type == "cuda"):
        image, text = model.encode_image(images), model.encode_text(tokens)  # type: ignore[operator]
    features = Features(*(F.normalize(feature.float(), dim=-1) for feature in (image, text)))
    loss = objective(features, torch.arange(BATCH, device=DEVICE), torch.tensor([TAU], device=DEVICE)).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return now() - started, spent["seconds"]


def timed(function: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    """function, which leaves its seconds in `spent`."""

    def run(*args: Any) -> Any:
        started = now()
        result = function(*args)
        spent["seconds"] = now() - started
        return result

    return run


def now() -> float:
    """The time when the device has done what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def random_batch(seed: int) -> tuple[Anchors, Tensor]:
    """Gathered anchors of all ranks, and targets for them."""
    generator = torch.Generator().manual_seed(seed + rank())
    local = F.normalize(torch.randn(ANCHORS, 2, DIMENSION, generator=generator), dim=-1)
    embeddings = all_gather(local).transpose(0, 1)
    target = all_gather(torch.randn(ANCHORS, 2, generator=generator) - 3).T
    return Anchors(embeddings, (embeddings[0] * embeddings[1]).sum(-1), torch.tensor([TAU])), target


class PrototypeParallel:
    """Ours."""

    def __init__(self, prototypes: int, inner_steps: int) -> None:
        config = LogNormalizerConfig(prototypes=prototypes, inner_steps=inner_steps)
        self.npn = PrototypeNetwork(config, EPS, ratio_bound=1e3)
        self.npn.prepare(torch.device("cpu"), DIMENSION, seed=0)

    def observe(self, anchors: Anchors) -> None:
        self.npn.observe(anchors.embeddings)

    def step(self, anchors: Anchors, target: Tensor) -> Tensor:
        return self.npn.step(anchors, target).alpha


class Replicated:
    """The network as one would write it for data parallelism: all prototypes on every rank, gradients all-reduced."""

    def __init__(self, prototypes: int, inner_steps: int) -> None:
        self.weights = torch.zeros(2, prototypes, DIMENSION, requires_grad=True)
        self.optimizer = torch.optim.Adagrad([self.weights], lr=LogNormalizerConfig().lr)
        self.inner_steps = inner_steps

    def observe(self, anchors: Anchors) -> None:
        draw = torch.arange(self.weights.shape[1]) % anchors.positive.shape[0]
        self.weights.data = anchors.embeddings[:, draw].flip(0)

    def step(self, anchors: Anchors, target: Tensor) -> Tensor:
        own = slice(rank() * ANCHORS, (rank() + 1) * ANCHORS)
        local = Anchors(anchors.embeddings[:, own], anchors.positive[own], anchors.tau)
        for _ in range(self.inner_steps):
            self.optimizer.zero_grad()
            alpha = self.alpha(local)
            loss = (TAU * (torch.exp(target[:, own] - alpha) + alpha - 1).mean(dim=1)).sum()
            loss.backward()
            self.weights.grad = all_reduce(self.weights.grad, "mean") if self.weights.grad is not None else None
            self.optimizer.step()
        with torch.no_grad():
            return all_gather(self.alpha(local).T).T

    def alpha(self, anchors: Anchors) -> Tensor:
        cosine = anchors.embeddings @ F.normalize(self.weights, dim=-1).transpose(1, 2)
        z = (cosine - anchors.positive.unsqueeze(-1)) / anchors.tau
        log_q = z.logsumexp(dim=-1) - math.log(self.weights.shape[1])
        return torch.logaddexp(log_q, log_q.new_tensor(math.log(EPS)))


KINDS: dict[str, type[PrototypeParallel | Replicated]] = {"ours": PrototypeParallel, "replicated": Replicated}


def measure(kind: str, prototypes: int, inner_steps: int, repeats: int) -> dict[str, float]:
    """Median seconds of a step of the slowest rank, bytes that this rank sends, MiB that its peak grew by."""
    anchors, target = random_batch(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    before = peak_mib()
    network = KINDS[kind](prototypes, inner_steps)
    network.observe(anchors)
    times = []
    with count_bytes() as sent:
        for _ in range(repeats + 1):
            started = time.perf_counter()
            alpha = network.step(anchors, target)
            times.append(time.perf_counter() - started)
    objective = (torch.exp(target - alpha) + alpha - 1).mean()
    bytes_sent = sum(sent.values()) / (repeats + 1)
    seconds = all_reduce(torch.tensor(statistics.median(times[1:])), "max").item()
    return {
        "seconds": round(seconds, 4),
        "bytes": bytes_sent,
        "peak_mib": round(peak_mib() - before),
        "objective": round(objective.item(), 4),
    }


def peak_mib() -> float:
    """This process's peak resident memory, from Linux."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def on_ranks(ranks: int, *arguments: Any, threads: int = 1) -> dict[str, float]:
    """What `measure` says on rank 0, in fresh processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, args=(ranks, port, threads, results, arguments), nprocs=ranks)
    return results.get()


def _rank(number: int, ranks: int, port: int, threads: int, results: Any, arguments: tuple[Any, ...]) -> None:
    os.environ.update(WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), CUDA_VISIBLE_DEVICES="")
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number))
    torch.set_num_threads(threads)
    init(timeout_seconds=120)
    assert world_size() == ranks
    result = measure(*arguments)
    if number == 0:
        results.put(result)
    shutdown()


def parallel(ranks: int, repeats: int) -> dict[str, Any]:
    """Both networks on so many ranks, and ours over theirs."""
    found = {kind: on_ranks(ranks, kind, PROTOTYPES, INNER_STEPS, repeats) for kind in KINDS}
    ours, theirs = found["ours"], found["replicated"]
    ratios = {f"{name}_ratio": ours[name] / theirs[name] for name in ("seconds", "bytes") if theirs[name]}
    return {**found, **ratios}


def sizes(encoder_seconds: float, cores: int) -> list[dict[str, float]]:
    """Ours in one process on all cores, by M and T_u, against the rest of the training step."""
    rows = []
    for prototypes in (1024, 4096, 16384, 65536):
        for inner_steps in (1, 10):
            found = on_ranks(1, "ours", prototypes, inner_steps, 3, threads=cores)
            share = found["seconds"] / (found["seconds"] + encoder_seconds)
            rows.append({"prototypes": prototypes, "inner_steps": inner_steps, **found, "npn_share": round(share, 5)})
    return rows


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0].partition(": ")[2] if names else platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if DEVICE.type == "cuda" else None,
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 ranks and one size; write no file")
    quick = parser.parse_args().quick
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    step = training_step(repeats=2 if quick else 5)
    two = parallel(2, repeats=3)
    line = {
        "npn_share": round(step["npn_share"], 4),
        "bytes_ratio": two["bytes_ratio"],
        "seconds_ratio": round(two["seconds_ratio"], 3),
        "step_seconds": round(step["step_seconds"], 3),
        "npn_seconds": round(step["npn_seconds"], 4),
        "batch": BATCH,
        "device": DEVICE.type,
    }
    if not quick:
        by_ranks = {str(ranks): two if ranks == 2 else parallel(ranks, repeats=3) for ranks in (1, 2, 4)}
        by_size = sizes(step["step_seconds"] - step["npn_seconds"], cores)
        RESULTS.parent.mkdir(exist_ok=True)
        report = {"machine": machine(), "vit_b_32": line, "sizes": by_size, "ranks": by_ranks}
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
