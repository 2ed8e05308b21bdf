"""A checkpoint into another number of ranks or another ZeRO stage.

DeepSpeed's converter writes a file per parameter for the weights and for each of AdamW's moments, whole and in fp32; a
run of any shape then sets its part of each. (DeepSpeed can read such a folder by itself, but 0.19.8 fails where a rank
has nothing of a parameter, as of tau, does not go from stage 2 to 3, and after stage 3 goes on with other numbers.)
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.engine.master_state import set_moment, set_weights
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.engine.engine import TrainEngine

MOMENTS = ("exp_avg", "exp_avg_sq")


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


def load_converted(engine: TrainEngine, converted: Path, tag_folder: Path, updates: int) -> None:
    """Set weights, moments, step count and buffers of a fresh engine; collective.

    converted: from `convert` of `tag_folder`. updates: that AdamW made, steps less those that were skipped.
    """
    _allocate_moments(engine, updates)
    for name, parameter in engine.module.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if not parameter.requires_grad:
            continue
        set_weights(parameter, _read(converted, name, "fp32", shape), engine.world)
        for moment in MOMENTS:
            value = _read(converted, name, moment, shape)
            if engine.zero_stage == 0:
                engine.optimizer.state[parameter][moment].copy_(value)
            else:
                set_moment(parameter, moment, value, engine.world)
    _load_the_rest(engine, tag_folder)


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


def _read(converted: Path, name: str, key: str, shape: torch.Size) -> Tensor:
    """One tensor of one parameter; flat and padded when it comes from stage 3."""
    content = torch.load(converted / "zero" / name / f"{key}.pt", weights_only=True)
    tensor = content["param"] if isinstance(content, dict) else content
    return tensor.detach().float().flatten()[: shape.numel()].view(shape)


def _load_the_rest(engine: TrainEngine, tag_folder: Path) -> None:
    """Buffers (running statistics), which every rank has saved, and parameters that are locked, which none updates."""
    path = min(tag_folder.glob("*model_states.pt"))
    state = torch.load(path, weights_only=True)
    locked = [(name, p.data) for name, p in engine.module.named_parameters() if not p.requires_grad]
    for name, tensor in [*engine.module.named_buffers(), *locked]:
        saved = state["module"].get(name)
        if saved is not None and saved.shape == tensor.shape:  # partitioned ones are as the recipe starts them
            tensor.copy_(saved)
