"""Every registered objective, whatever the shapes, tau, repeated samples and number of ranks: as one process has it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.collectives import all_gather, all_reduce
from pipeline.distributed import rank, world_size
from pipeline.objectives import REGISTRY, Features, build_objective
from tests.distributed.launch import run_ranks

STEPS = 2

CASES = st.fixed_dictionaries(
    {
        "objective": st.sampled_from(sorted(REGISTRY)),
        "batch_size": st.integers(1, 4),  # of a rank
        "dim": st.integers(2, 12),
        "tau": st.floats(0.005, 1.0),
        "dataset_size": st.integers(1, 40),  # few: then a batch holds samples twice
        "prototypes": st.integers(1, 9),
        "seed": st.integers(0, 2**31),
    }
)


def outcome(case: dict[str, Any], ranks: int) -> dict[str, list[Tensor]]:
    """Losses and gradients of a few steps, of the whole batch for `ranks` ranks, whoever computes them; in float64."""
    options = {"npn": {"prototypes": case["prototypes"], "inner_steps": 2}} if case["objective"] == "neuclip" else {}
    objective: Any = build_objective(case["objective"], options)
    objective.prepare(torch.device("cpu"), case["dim"], case["dataset_size"], seed=case["seed"])
    if case["objective"] == "neuclip":
        objective.npn.prepare(torch.device("cpu"), case["dim"], seed=case["seed"], dtype=torch.float64)
    generator = torch.Generator().manual_seed(case["seed"])
    size = case["batch_size"] * ranks
    own = slice(rank(), None, world_size())
    found: dict[str, list[Tensor]] = {"losses": [], "gradients": []}
    for _ in range(STEPS):
        rows = [F.normalize(torch.randn(size, case["dim"], generator=generator), dim=-1)[own] for _ in "it"]
        index = torch.randint(case["dataset_size"], (size,), generator=generator)[own]
        bias = objective.default_logit_bias
        scalars = [case["tau"]] if bias is None else [case["tau"], bias]
        leaves = [leaf.clone().requires_grad_() for leaf in (*rows, *(torch.tensor([scalar]) for scalar in scalars))]
        loss = objective(Features(*leaves[:2]), index, *leaves[2:]).loss
        gradients = torch.autograd.grad(loss, leaves)
        gathered = [all_gather(gradient).unflatten(0, (world_size(), -1)) for gradient in gradients[:2]]
        found["losses"].append(loss.detach())
        found["gradients"] += [part.transpose(0, 1).flatten(0, 1) / world_size() for part in gathered]
        found["gradients"] += [all_reduce(gradient, "mean") for gradient in gradients[2:]]
    return found


def outcomes(cases: list[dict[str, Any]], ranks: int) -> list[dict[str, list[Tensor]]]:
    torch.set_default_dtype(torch.float64)
    try:
        return [outcome(case, ranks) for case in cases]
    finally:
        torch.set_default_dtype(torch.float32)


@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(ranks=st.integers(2, 4), cases=st.lists(CASES, min_size=10, max_size=20))
def test_ranks_share_any_batch(ranks: int, cases: list[dict[str, Any]]) -> None:
    alone = outcomes(cases, ranks)
    for ours in run_ranks(ranks, outcomes, cases, ranks):
        for case, got, expected in zip(cases, ours, alone, strict=True):
            for name, tensors in got.items():
                for tensor, other in zip(tensors, expected[name], strict=True):
                    assert torch.isfinite(tensor).all(), case
                    error, scale = float((tensor - other).abs().max()), float(other.abs().max())
                    assert error <= 1e-6 * scale + 1e-12, (case, name, error, scale)
