"""Setting what ZeRO keeps of a parameter, its fp32 weights and AdamW's moments, whichever rank holds what."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from deepspeed.utils import (
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor

from pipeline.distributed import World
from pipeline.engine.lean_deepspeed import deepspeed


@torch.no_grad()
def set_weights(parameter: Any, value: Tensor, world: World) -> None:
    """The parameter, and the fp32 copy that updates start from. value: as `parameter`, the same on every rank."""
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(value)
    if hasattr(parameter, "ds_tensor"):
        safe_set_local_fp32_param(parameter, _own_part(parameter, value, world))
    else:
        safe_set_full_fp32_param(parameter, value)


@torch.no_grad()
def clamp(parameter: Any, lowest: float, highest: float, world: World) -> None:
    """Bring a parameter and its fp32 copy into a range; without waiting for the device except under ZeRO-3.

    There setting a weight is collective, and may fetch it from NVMe, so it is only set where it is outside.
    """
    if hasattr(parameter, "ds_tensor"):
        with deepspeed.zero.GatheredParameters([parameter]):
            bounded = parameter.clamp(lowest, highest)
            within = torch.equal(bounded, parameter)
        if not within:
            set_weights(parameter, bounded, world)
        return
    parameter.data.clamp_(lowest, highest)
    fragment = getattr(parameter, "_hp_mapping", None)  # on the rank that updates it
    if fragment is not None:
        fragment.get_hp_fragment().data.clamp_(lowest, highest)


@torch.no_grad()
def set_locked(parameter: Any, value: Tensor) -> None:
    """A parameter that is not trained. value: as `parameter`, the same on every rank."""
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(value)


def set_moment(parameter: Any, name: str, value: Tensor, world: World) -> None:
    """name: exp_avg or exp_avg_sq, which must exist. value: as `parameter`, the same on every rank."""
    if hasattr(parameter, "ds_tensor"):
        safe_set_local_optimizer_state(parameter, _own_part(parameter, value, world), name)
    else:
        safe_set_full_optimizer_state(parameter, value, name)


def _own_part(parameter: Any, value: Tensor, world: World) -> Tensor:
    """This rank's part under ZeRO-3, padded: DeepSpeed's own setter of whole values fails where there is padding."""
    size = parameter.ds_tensor.numel()
    padded = F.pad(value.flatten(), (0, size * world.size - value.numel()))
    return padded.narrow(0, size * world.rank, size)
