"""What a run will need, without making it: towers on torch's meta device, objectives in a pretended process group.

Nothing here is measured. What is left out: activations, communication buffers, what CUDA and the allocator keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from pipeline.collectives import count_bytes
from pipeline.config.schema import RunConfig
from pipeline.engine.train_module import build_train_module
from pipeline.models.two_tower import open_clip_config
from pipeline.objectives import Features, build_objective

FP32 = 4
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class TowerSizes:
    """Numbers of parameters."""

    image: int
    text: int
    total: int


def towers_on_meta(config: RunConfig) -> nn.Module:
    """The model of a run without its memory. Raises UserError where the run would."""
    with torch.device("meta"):
        return build_train_module(config).towers


def tower_sizes(towers: Any) -> TowerSizes:
    """towers: open_clip's CLIP, on any device."""
    image = sum(p.numel() for p in towers.visual.parameters())
    total = sum(p.numel() for p in towers.parameters())
    return TowerSizes(image, total - image, total)


def model_state_bytes(parameters: int, stage: int, ranks: int) -> int:
    """Of one rank under ZeRO `stage`: parameters, gradients and AdamW's moments, all fp32 as we keep them.

    From stage 1 on DeepSpeed updates a flat copy of the rank's partition, which it keeps besides the parameters.
    """
    whole, part = FP32 * parameters, -(-FP32 * parameters // ranks)
    weights, gradients = (part if stage == 3 else whole), (part if stage >= 2 else whole)
    optimizer = 2 * whole if stage == 0 else 3 * part
    return weights + gradients + optimizer


def gradient_bytes(parameters: int, stage: int, ranks: int) -> int:
    """Sent by one rank and step for gradients and weights, as ring algorithms do (Rajbhandari et al., 1910.02054)."""
    return round((3 if stage == 3 else 2) * FP32 * parameters * (ranks - 1) / ranks)


def checkpoint_bytes(parameters: int, objective_state: int, averaged: bool = False) -> int:
    """Of one tag: weights, their flat copy and moments in fp32, perhaps their average, and the objective's state."""
    return (5 if averaged else 4) * FP32 * parameters + objective_state


def objective_state_bytes(name: str, config: RunConfig, ranks: int, samples_per_epoch: int) -> int:
    """What one rank of `ranks` keeps between steps for a registered objective with the recipe's options."""
    with _pretended_group(ranks):
        objective = build_objective(name, config.objectives.get(name, {}))
        objective.prepare(torch.device("meta"), _embed_dim(config), samples_per_epoch, config.seed)
    return sum(tensor.nbytes for tensor in _tensors(objective, set()))


def objective_sent_bytes(name: str, config: RunConfig, ranks: int) -> int:
    """What the objective has one rank send in a step, counted while it runs on random features."""
    batch_size, embed_dim = config.train.global_batch_size // ranks, _embed_dim(config)
    with _pretended_group(ranks):
        objective = build_objective(name, config.objectives.get(name, {}))
        objective.prepare(torch.device("cpu"), embed_dim, config.train.global_batch_size, config.seed)
        features = Features(*(F.normalize(torch.randn(batch_size, embed_dim), dim=-1) for _ in range(2)))
        bias = None if objective.default_logit_bias is None else torch.tensor([objective.default_logit_bias])
        with count_bytes() as sent:
            objective(features, torch.arange(batch_size), torch.tensor([objective.default_tau]), bias)
    return sum(sent.values())


def _embed_dim(config: RunConfig) -> int:
    return int(open_clip_config(config.model)["embed_dim"])


@contextmanager
def _pretended_group(ranks: int) -> Iterator[None]:
    """This process as rank 0 of `ranks` that do not exist: collectives return at once, with anything."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """All tensors that an object holds, wherever, once each."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
        return
    children = value if isinstance(value, (list, tuple)) else getattr(value, "__dict__", {}).values()
    for child in value.values() if isinstance(value, dict) else children:
        yield from _tensors(child, seen)
