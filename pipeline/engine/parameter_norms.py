"""The norm of each group of parameters, whichever rank holds what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import collectives
from pipeline.distributed import World


@torch.no_grad()
def parameter_norms(groups: Mapping[str, Iterable[nn.Parameter]], world: World) -> dict[str, Tensor]:
    """The Euclidean norm of each group, () in fp64 so that small steps show; equal on every rank, collective."""
    squares, partitioned = [], False
    for parameters in groups.values():
        norms = []
        for parameter in parameters:
            partitioned |= hasattr(parameter, "ds_tensor")
            norms.append(torch.linalg.vector_norm(_held(parameter, world.rank), dtype=torch.float64))
        squares.append(torch.stack(norms).square().sum())
    sums = torch.stack(squares).to(world.device)
    if partitioned:
        sums = collectives.all_reduce(sums, "sum")
    return dict(zip(groups, sums.sqrt(), strict=True))


def _held(parameter: Any, rank: int) -> Tensor:
    """This rank's part under ZeRO-3; else the whole parameter."""
    part = getattr(parameter, "ds_tensor", None)
    return parameter if part is None else unpadded(parameter, part, rank)


def unpadded(parameter: Any, part: Tensor, rank: int) -> Tensor:
    """A rank's part of the parameter, or of what belongs to it, under ZeRO-3: without padding, which nobody writes."""
    rest = parameter.ds_numel - rank * part.numel()
    return part.narrow(0, 0, min(max(rest, 0), part.numel()))
