"""Every objective against open_clip's ClipLoss and SigLipLoss: one rank's time and peak memory, forward and backward.

    python benchmarks/objectives.py [--quick]

Legend: B local batch, K = 8 ranks, G = B*K global batch, D = 512.

Every measurement runs in a process of its own, as rank 0 of K under torch's fake process group: each side does the
arithmetic of one rank and allocates what one rank does, and nothing travels. What the other ranks would send is the
rank's own data, with the rows rotated: K copies of one batch, unit-norm features and the scalars that belong to them.
Times are the best of several steps, on CPU the processor time of one thread, so that what else the machine does
counts for little. Peak memory is how far a few
steps raise the peak of the process: its resident set, or torch's allocations on CUDA. An objective's work beyond a
loss (NeuCLIP's and AmorLIP's networks) is in its numbers.

Prints one JSON line: milliseconds and peak MiB by setting, and of the largest setting `ratio_X` (the peer's time over
ours) and `memory_ratio_X` (the peer's peak over ours). SigLIP's peer is SigLipLoss, everybody else's ClipLoss with
local loss and differentiable gather. Without --quick also writes benchmarks/results/objectives.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from pipeline.objectives import REGISTRY, Features, build_objective
from pipeline.objectives.base import Objective

RANKS, DIMENSION = 8, 512
QUICK, FULL = [256], [1024, 4096]  # B
REPEATS = {256: 9, 1024: 3, 4096: 1}  # steps timed, by B, after one to warm up
MEMORY_GIB = 20  # of a process, on CPU; what needs more does not fit
CLIP_LOSS, SIGLIP_LOSS = "ClipLoss", "SigLipLoss"
RESULTS = Path(__file__).parent / "results" / "objectives.json"


def peer_of(objective: str) -> str:
    return SIGLIP_LOSS if objective == "siglip" else CLIP_LOSS


def receive_own_rows() -> None:
    """Make every collective that moves data deliver this rank's own tensors, rows rotated by the sender's number."""

    def from_rank(tensor: Tensor, sender: int) -> Tensor:
        if not tensor.is_floating_point():
            return tensor + sender * tensor.shape[0]  # sample indices: no two ranks hold the same sample
        return tensor.roll(sender, dims=0)

    def all_gather(received: list[Tensor], tensor: Tensor, group: Any = None) -> None:
        for sender, part in enumerate(received):
            part.copy_(from_rank(tensor, sender))

    def all_gather_into_tensor(received: Tensor, tensor: Tensor, group: Any = None) -> None:
        all_gather(list(received.chunk(RANKS)), tensor)

    def all_to_all(received: list[Tensor], tensors: list[Tensor], group: Any = None) -> None:
        for part, tensor in zip(received, tensors, strict=True):
            part.copy_(tensor)

    def batch_isend_irecv(operations: list[dist.P2POp]) -> list[dist.Work]:
        sent = [operation.tensor for operation in operations if operation.op is dist.isend]
        received = [operation.tensor for operation in operations if operation.op is dist.irecv]
        for part, tensor in zip(received, sent, strict=True):
            part.copy_(tensor)
        return []

    for replacement in (all_gather, all_gather_into_tensor, all_to_all, batch_isend_irecv):
        setattr(dist, replacement.__name__, replacement)


def build_step(name: str, batch_size: int, device: torch.device) -> Callable[[], Tensor]:
    """One step's loss of an objective or a peer, on fixed features, where the objective starts tau and the bias."""
    torch.manual_seed(0)
    image, text = (
        F.normalize(torch.randn(batch_size, DIMENSION, device=device), dim=-1).requires_grad_() for _ in range(2)
    )
    like = next((ours for ours in REGISTRY if peer_of(ours) == name), name)
    objective: Objective = build_objective(like, {})
    logit_scale = -torch.tensor([objective.default_tau], device=device).log().requires_grad_()
    bias = objective.default_logit_bias
    logit_bias = None if bias is None else torch.tensor([bias], device=device, requires_grad=True)
    if name == CLIP_LOSS:
        clip_loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=0, world_size=RANKS)
        return lambda: clip_loss(image, text, logit_scale.exp())
    if name == SIGLIP_LOSS:
        siglip_loss = SigLipLoss(rank=0, world_size=RANKS)
        return lambda: siglip_loss(image, text, logit_scale.exp(), logit_bias)
    objective.prepare(device, DIMENSION, 10 * RANKS * batch_size, seed=0)
    index = torch.arange(batch_size, device=device)
    return lambda: objective(Features(image, text), index, torch.exp(-logit_scale), logit_bias).loss


def measure(name: str, batch_size: int) -> dict[str, float]:
    """Best milliseconds of a step and peak MiB; in a process that does nothing else."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_GIB * 2**30, MEMORY_GIB * 2**30))
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    receive_own_rows()
    step = build_step(name, batch_size, device)
    warm = torch.ones(64, 64, device=device, requires_grad=True)
    (warm @ warm).sum().backward()  # the libraries' own buffers belong to neither side
    before = restart_peak(device)
    milliseconds = []
    for _ in range(REPEATS[batch_size] + 1):
        started = now(device)
        step().backward()
        milliseconds.append(1e3 * (now(device) - started))
    peak = peak_bytes(device) - before
    return {"ms": round(min(milliseconds[1:]), 2), "peak_mib": round(peak / 2**20, 1)}


def now(device: torch.device) -> float:
    """Seconds once the device has done what it was given; on CPU those of this process alone, who else runs or not."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def restart_peak(device: torch.device) -> int:
    """Let the peak begin at what is held now; returns that, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """The most that was held at once since `restart_peak`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measure_apart(name: str, batch_size: int) -> dict[str, Any]:
    """`measure` in a fresh process; {"failed": why} when it did not come through."""
    arguments = ["--measure", name, "--batch", str(batch_size)]
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    out_of_memory = "memory" in said[-1] or done.returncode < 0
    return {"failed": f"does not fit {MEMORY_GIB} GiB" if out_of_memory else said[-1]}


def compare(batch_size: int) -> dict[str, Any]:
    """All peers and objectives at one setting."""
    found = {name: measure_apart(name, batch_size) for name in (CLIP_LOSS, SIGLIP_LOSS, *REGISTRY)}
    result: dict[str, Any] = {"batch": batch_size, "global_batch": batch_size * RANKS}
    for key in ("ms", "peak_mib", "failed"):
        result[key] = {name: numbers[key] for name, numbers in found.items() if key in numbers}
    for prefix, key in (("ratio", "ms"), ("memory_ratio", "peak_mib")):
        values = result[key]
        for name in REGISTRY:
            peer = peer_of(name)
            both = name in values and peer in values
            result[f"{prefix}_{name}"] = round(values[peer] / values[name], 3) if both else None
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"B = {QUICK[0]} instead of {FULL}")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.batch)))
        return
    cuda = torch.cuda.is_available()
    settings = [compare(batch_size) for batch_size in (QUICK if arguments.quick else FULL)]
    report = {
        "benchmark": "objectives",
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, one thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "ranks": RANKS,
        "dimension": DIMENSION,
        "settings": settings,
        **{key: value for key, value in settings[-1].items() if "ratio" in key},
    }
    if not arguments.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
