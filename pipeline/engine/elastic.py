"""A checkpoint into another number of ranks or another ZeRO stage.

Weights and AdamW's moments are read whole, in fp32, one parameter at a time, and a run of any shape sets its part of
each. Of moments that are partitioned (stage 1 to 3) DeepSpeed's converter writes a file per parameter first. (DeepSpeed
can read such a folder by itself, but 0.19.8 fails where a rank has nothing of a parameter, as of tau, does not go from
stage 2 to 3, and after stage 3 goes on with other numbers.)
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.engine.consolidated import consolidated
from pipeline.engine.master_state import set_locked, set_moment, set_weights
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.engine.engine import TrainEngine

MOMENTS = ("exp_avg", "exp_avg_sq")
Moments = Callable[[str, str], Tensor]  # a parameter's name, one of MOMENTS -> it, perhaps flat and padded


def convert(tag_folder: Path, out: Path) -> None:
    """Write the per-parameter files of a checkpoint of stage 1 to 3. Raises UserError when DeepSpeed's tool fails."""
    tool = [sys.executable, "-m", "pipeline.engine.converter", "--inject_missing_state"]
    workers = ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    done = subprocess.run(
        [*tool, "--input_folder", str(tag_folder), "--output_folder", str(out), *workers],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(
            f"{tag_folder} cannot be converted for another number of ranks or ZeRO stage: {_reason(done.stderr)}. "
            "Resume with those that it was saved with"
        )


def _reason(stderr: str) -> str:
    """The message of the last exception, or the last line."""
    lines = stderr.strip().splitlines() or ["it said nothing"]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception):", line)]
    return (errors or lines)[-1]


def converted_moments(converted: Path) -> Moments:
    """Of a folder that `convert` wrote."""

    def read(name: str, moment: str) -> Tensor:
        content = torch.load(converted / "zero" / name / f"{moment}.pt", weights_only=True)
        return content["param"] if isinstance(content, dict) else content

    return read


def whole_moments(engine: TrainEngine, tag_folder: Path) -> Moments:
    """Of a checkpoint of stage 0, which has torch's own state; parameters are numbered through the groups."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    order = [names[id(parameter)] for group in engine.groups.values() for parameter in group]
    saved = torch.load(tag_folder / "mp_rank_00_model_states.pt", map_location="cpu", mmap=True, weights_only=True)
    state = dict(zip(order, (saved["optimizer"]["state"][number] for number in range(len(order))), strict=True))
    return lambda name, moment: state[name][moment]


def load_elsewhere(engine: TrainEngine, tag_folder: Path, moments: Moments, updates: int) -> None:
    """Set weights, locked ones too, moments, step count and buffers of a fresh engine; collective.

    moments: of `tag_folder`. updates: that AdamW made, steps less those that were skipped.
    """
    weights = consolidated(tag_folder)
    _allocate_moments(engine, updates)
    for name, parameter in engine.module.named_parameters():
        value = weights[name].read().float()
        if not parameter.requires_grad:
            set_locked(parameter, value)
            continue
        set_weights(parameter, value, engine.world)
        for moment in MOMENTS:
            part = moments(name, moment).detach().float().flatten()[: value.numel()].view(value.shape)  # from 3: padded
            if engine.zero_stage == 0:
                engine.optimizer.state[parameter][moment].copy_(part)
            else:
                set_moment(parameter, moment, part, engine.world)
    for name, buffer in engine.module.named_buffers():
        if name in weights:
            buffer.copy_(weights[name].read())


def _allocate_moments(engine: TrainEngine, updates: int) -> None:
    """As AdamW itself does at its first step, and count the steps."""
    inner = engine.optimizer if engine.zero_stage == 0 else engine.optimizer.optimizer
    flat = [parameter for group in inner.param_groups for parameter in group["params"]]
    if engine.zero_stage == 3:
        flat = engine.optimizer.fp32_partitioned_groups_flat
    for parameter in flat:
        inner.state[parameter] = {
            "step": torch.tensor(float(updates), device=parameter.device),
            **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
        }
    if engine.zero_stage in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()
